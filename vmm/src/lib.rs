//! A microVM monitor as a library.
