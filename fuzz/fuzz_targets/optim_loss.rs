#![no_main]

libfuzzer_sys::fuzz_target!(|case: resblock_fuzz::optim_loss::Case| resblock_fuzz::optim_loss::run(&case));
