from _anything import fill

parts = ["transforms", "transforms.functional", "transforms.v2", "models", "ops", "io", "utils"]
fill(__name__, parts)
