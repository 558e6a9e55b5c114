"""The ground: the engine; knows no product noun but tenant and tier."""
