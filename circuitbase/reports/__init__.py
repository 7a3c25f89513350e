"""Reports and pictures of comparisons: pages, heat maps, maps, differences."""
