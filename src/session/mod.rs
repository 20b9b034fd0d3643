//! A client and what serves it: bind state, operations in flight, and the loop that moves PDUs both ways.
