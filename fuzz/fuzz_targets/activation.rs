#![no_main]

libfuzzer_sys::fuzz_target!(|case: resblock_fuzz::activation::Case| resblock_fuzz::activation::run(&case));
