"""The language of a link: frames, messages, and which may come when. Bytes in, meaning out; no sockets, no clocks."""
