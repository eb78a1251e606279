#![no_main]

libfuzzer_sys::fuzz_target!(|case: resblock_fuzz::views::Case| resblock_fuzz::views::run(&case));
