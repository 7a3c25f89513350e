"""What the shipped model is taught: facts that are true, as plain lists.

States with their capitals, postal abbreviations, regions of the Census Bureau and nicknames;
countries with their capitals, most widely used official languages, continents and currencies;
words with their opposites, in English and in French. Every name is one token and stands for one
thing only, whatever other places bear it. Countries for which one of the four answers would have to
be argued about are left out.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["COUNTRIES", "OPPOSITES", "STATES", "Country", "Opposites", "State"]


class State(NamedTuple):
    """One state of the United States; `capital` is not among its other `cities`."""

    name: str
    abbreviation: str
    region: str
    nickname: str
    capital: str
    cities: tuple[str, ...]


class Country(NamedTuple):
    """One country; `capital` is not among its other `cities`."""

    name: str
    language: str
    continent: str
    currency: str
    capital: str
    cities: tuple[str, ...]


class Opposites(NamedTuple):
    """Two words that are opposites, in two languages."""

    english: tuple[str, str]
    french: tuple[str, str]


_STATES: Final = """
Alabama | AL | South | Yellowhammer State | Montgomery | Birmingham, Mobile, Huntsville, Tuscaloosa
Alaska | AK | West | Last Frontier | Juneau | Anchorage, Fairbanks, Sitka, Ketchikan
Arizona | AZ | West | Grand Canyon State | Phoenix | Tucson, Mesa, Flagstaff, Scottsdale
Arkansas | AR | South | Natural State | Little Rock | Fort Smith, Jonesboro, Hot Springs, Pine Bluff
California | CA | West | Golden State | Sacramento | Los Angeles, San Francisco, San Diego, Oakland
Colorado | CO | West | Centennial State | Denver | Boulder, Aspen, Pueblo, Colorado Springs
Connecticut | CT | Northeast | Constitution State | Hartford | New Haven, Bridgeport, Stamford, Waterbury
Delaware | DE | South | First State | Dover | Wilmington, Lewes, Rehoboth Beach
Florida | FL | South | Sunshine State | Tallahassee | Miami, Orlando, Tampa, Jacksonville
Georgia | GA | South | Peach State | Atlanta | Savannah, Macon, Marietta, Valdosta
Hawaii | HI | West | Aloha State | Honolulu | Hilo, Kailua, Kahului, Waipahu
Idaho | ID | West | Gem State | Boise | Nampa, Pocatello, Twin Falls, Idaho Falls
Illinois | IL | Midwest | Prairie State | Springfield | Chicago, Peoria, Rockford, Naperville
Indiana | IN | Midwest | Hoosier State | Indianapolis | Fort Wayne, Evansville, South Bend, Gary
Iowa | IA | Midwest | Hawkeye State | Des Moines | Cedar Rapids, Davenport, Sioux City, Dubuque
Kansas | KS | Midwest | Sunflower State | Topeka | Wichita, Overland Park, Lawrence, Salina
Kentucky | KY | South | Bluegrass State | Frankfort | Louisville, Lexington, Bowling Green, Paducah
Louisiana | LA | South | Pelican State | Baton Rouge | New Orleans, Shreveport, Lafayette, Lake Charles
Maine | ME | Northeast | Pine Tree State | Augusta | Bangor, Lewiston, Bar Harbor, Biddeford
Maryland | MD | South | Old Line State | Annapolis | Baltimore, Frederick, Hagerstown, Rockville
Massachusetts | MA | Northeast | Bay State | Boston | Worcester, Cambridge, Lowell, New Bedford
Michigan | MI | Midwest | Great Lakes State | Lansing | Detroit, Ann Arbor, Grand Rapids, Flint
Minnesota | MN | Midwest | North Star State | Saint Paul | Minneapolis, Duluth, Saint Cloud, Mankato
Mississippi | MS | South | Magnolia State | Jackson | Biloxi, Gulfport, Hattiesburg, Tupelo
Missouri | MO | Midwest | Show Me State | Jefferson City | Saint Louis, Kansas City, Branson, Joplin
Montana | MT | West | Treasure State | Helena | Billings, Missoula, Bozeman, Butte
Nebraska | NE | Midwest | Cornhusker State | Lincoln | Omaha, Kearney, Grand Island, North Platte
Nevada | NV | West | Silver State | Carson City | Las Vegas, Reno, Henderson, Elko
New Hampshire | NH | Northeast | Granite State | Concord | Nashua, Manchester, Keene, Portsmouth
New Jersey | NJ | Northeast | Garden State | Trenton | Newark, Jersey City, Atlantic City, Hoboken
New Mexico | NM | West | Land of Enchantment | Santa Fe | Albuquerque, Las Cruces, Roswell, Taos
New York | NY | Northeast | Empire State | Albany | New York City, Buffalo, Rochester, Syracuse
North Carolina | NC | South | Tar Heel State | Raleigh | Charlotte, Durham, Greensboro, Asheville
North Dakota | ND | Midwest | Peace Garden State | Bismarck | Fargo, Grand Forks, Minot, Williston
Ohio | OH | Midwest | Buckeye State | Columbus | Cleveland, Cincinnati, Toledo, Dayton
Oklahoma | OK | South | Sooner State | Oklahoma City | Tulsa, Norman, Lawton, Stillwater
Oregon | OR | West | Beaver State | Salem | Portland, Eugene, Bend, Medford
Pennsylvania | PA | Northeast | Keystone State | Harrisburg | Philadelphia, Pittsburgh, Scranton, Allentown
Rhode Island | RI | Northeast | Ocean State | Providence | Newport, Warwick, Cranston, Pawtucket
South Carolina | SC | South | Palmetto State | Columbia | Greenville, Myrtle Beach, Spartanburg, Rock Hill
South Dakota | SD | Midwest | Mount Rushmore State | Pierre | Sioux Falls, Rapid City, Deadwood, Brookings
Tennessee | TN | South | Volunteer State | Nashville | Memphis, Knoxville, Chattanooga, Murfreesboro
Texas | TX | South | Lone Star State | Austin | Dallas, Houston, San Antonio, El Paso
Utah | UT | West | Beehive State | Salt Lake City | Provo, Ogden, Moab, Park City
Vermont | VT | Northeast | Green Mountain State | Montpelier | Burlington, Rutland, Brattleboro, Stowe
Virginia | VA | South | Old Dominion | Richmond | Norfolk, Roanoke, Charlottesville, Virginia Beach
Washington | WA | West | Evergreen State | Olympia | Seattle, Spokane, Tacoma, Yakima
West Virginia | WV | South | Mountain State | Charleston | Huntington, Wheeling, Morgantown, Parkersburg
Wisconsin | WI | Midwest | Badger State | Madison | Milwaukee, Green Bay, Racine, Kenosha
Wyoming | WY | West | Equality State | Cheyenne | Casper, Laramie, Cody, Gillette
"""  # noqa: E501

_COUNTRIES: Final = """
France | French | Europe | euro | Paris | Lyon, Marseille
Germany | German | Europe | euro | Berlin | Munich, Hamburg
Italy | Italian | Europe | euro | Rome | Milan, Naples
Spain | Spanish | Europe | euro | Madrid | Barcelona, Seville
Portugal | Portuguese | Europe | euro | Lisbon | Porto, Braga
Greece | Greek | Europe | euro | Athens | Thessaloniki, Patras
Austria | German | Europe | euro | Vienna | Salzburg, Graz
Netherlands | Dutch | Europe | euro | Amsterdam | Rotterdam, Utrecht
Poland | Polish | Europe | zloty | Warsaw | Krakow, Gdansk
Czechia | Czech | Europe | koruna | Prague | Brno, Ostrava
Hungary | Hungarian | Europe | forint | Budapest | Debrecen, Szeged
Romania | Romanian | Europe | leu | Bucharest | Cluj-Napoca, Timisoara
Croatia | Croatian | Europe | euro | Zagreb | Split, Rijeka
Sweden | Swedish | Europe | krona | Stockholm | Gothenburg, Malmo
Norway | Norwegian | Europe | krone | Oslo | Bergen, Trondheim
Denmark | Danish | Europe | krone | Copenhagen | Aarhus, Odense
Finland | Finnish | Europe | euro | Helsinki | Tampere, Turku
Iceland | Icelandic | Europe | krona | Reykjavik | Akureyri, Keflavik
Ukraine | Ukrainian | Europe | hryvnia | Kyiv | Lviv, Odesa
Serbia | Serbian | Europe | dinar | Belgrade | Novi Sad, Nis
Lithuania | Lithuanian | Europe | euro | Vilnius | Kaunas, Klaipeda
Latvia | Latvian | Europe | euro | Riga | Daugavpils, Liepaja
United Kingdom | English | Europe | pound | London | Glasgow, Liverpool
Japan | Japanese | Asia | yen | Tokyo | Osaka, Kyoto
China | Chinese | Asia | yuan | Beijing | Shanghai, Shenzhen
South Korea | Korean | Asia | won | Seoul | Busan, Incheon
Vietnam | Vietnamese | Asia | dong | Hanoi | Da Nang, Haiphong
Thailand | Thai | Asia | baht | Bangkok | Chiang Mai, Phuket
Bangladesh | Bengali | Asia | taka | Dhaka | Chittagong, Khulna
Iran | Persian | Asia | rial | Tehran | Isfahan, Shiraz
Saudi Arabia | Arabic | Asia | riyal | Riyadh | Jeddah, Medina
Egypt | Arabic | Africa | pound | Cairo | Alexandria, Luxor
Tunisia | Arabic | Africa | dinar | Tunis | Sfax, Sousse
Ghana | English | Africa | cedi | Accra | Kumasi, Tamale
Nigeria | English | Africa | naira | Abuja | Lagos, Kano
Angola | Portuguese | Africa | kwanza | Luanda | Huambo, Lobito
Senegal | French | Africa | franc | Dakar | Thies, Kaolack
Mexico | Spanish | North America | peso | Mexico City | Guadalajara, Monterrey
Cuba | Spanish | North America | peso | Havana | Camaguey, Holguin
Brazil | Portuguese | South America | real | Brasilia | Rio de Janeiro, Sao Paulo
Argentina | Spanish | South America | peso | Buenos Aires | Cordoba, Rosario
Chile | Spanish | South America | peso | Santiago | Valparaiso, Concepcion
Colombia | Spanish | South America | peso | Bogota | Medellin, Cali
Australia | English | Oceania | dollar | Canberra | Sydney, Melbourne
New Zealand | English | Oceania | dollar | Wellington | Auckland, Christchurch
"""

_OPPOSITES: Final = """
hot cold | chaud froid
big small | grand petit
fast slow | rapide lent
high low | haut bas
good bad | bon mauvais
old young | vieux jeune
rich poor | riche pauvre
strong weak | fort faible
heavy light | lourd léger
full empty | plein vide
open closed | ouvert fermé
true false | vrai faux
wet dry | mouillé sec
clean dirty | propre sale
hard soft | dur mou
happy sad | heureux triste
black white | noir blanc
day night | jour nuit
near far | proche lointain
early late | tôt tard
right left | droite gauche
sweet bitter | doux amer
thick thin | épais mince
war peace | guerre paix
love hate | amour haine
life death | vie mort
north south | nord sud
summer winter | été hiver
beginning end | début fin
victory defeat | victoire défaite
friend enemy | ami ennemi
winner loser | gagnant perdant
brave cowardly | courageux lâche
always never | toujours jamais
inside outside | dedans dehors
"""


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def _cities(cell: str) -> tuple[str, ...]:
    return tuple(city.strip() for city in cell.split(","))


def _pair(cell: str) -> tuple[str, str]:
    one, other = cell.split()
    return one, other


STATES: Final = tuple(
    State(name, abbreviation, region, nickname, capital, _cities(cities))
    for name, abbreviation, region, nickname, capital, cities in _rows(_STATES)
)
COUNTRIES: Final = tuple(
    Country(name, language, continent, currency, capital, _cities(cities))
    for name, language, continent, currency, capital, cities in _rows(_COUNTRIES)
)
OPPOSITES: Final = tuple(Opposites(_pair(one), _pair(other)) for one, other in _rows(_OPPOSITES))
