"""The open sockets: how each is fed and listened to, how all of them are looked after and counted."""
