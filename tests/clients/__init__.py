"""The recipes of docs/recipes, run by the clients and in front of the backends that they name.

Each module is named like its page. It takes the configuration of the gateway and the commands of the user from the
page (``pages``), so that a page that is wrong fails.
"""
