#![no_main]

libfuzzer_sys::fuzz_target!(|case: resblock_fuzz::digits::Case| resblock_fuzz::digits::run(&case));
