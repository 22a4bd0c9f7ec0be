//! The host side of Kiai.
