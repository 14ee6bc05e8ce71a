"""What a recipe can name: methods, backbones, mining strategies. One table each, and nothing is loaded to read them."""
