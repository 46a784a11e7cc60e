"""Sphinx extensions that turn executed notebooks into the book's pages."""
