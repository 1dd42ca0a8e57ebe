"""A web page that runs a model on the visitor's device: the files of the page, and a server for them."""
