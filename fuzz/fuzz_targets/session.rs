//! A whole session: requests and responses in any order, cut anywhere, upstreams lost at any octet, time passing.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ldaps_proxy_fuzz::session::play(input));
