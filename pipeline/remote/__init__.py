"""Images in a bucket or on a web server: a mirror of whole files below `data.cache`, or, where they are larger than
`data.cache_bytes`, the bytes of each image as the order of training needs them."""
