"""The page: paint over what should go, press a button, compare. Static files before the service."""
