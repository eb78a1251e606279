#![no_main]

libfuzzer_sys::fuzz_target!(|case: resblock_fuzz::checkpoint::Case| resblock_fuzz::checkpoint::run(&case));
