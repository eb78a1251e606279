#![no_main]

libfuzzer_sys::fuzz_target!(|case: resblock_fuzz::layers::Case| resblock_fuzz::layers::run(&case));
