//! The header is what the sources make it.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_sources() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("a configuration");
    let builder = cbindgen::Builder::new().with_config(config).with_crate(folder);
    let mut made = Vec::new();
    builder.generate().expect("a header").write(&mut made);
    let made = String::from_utf8(made).expect("text");
    let path = folder.join("include/resblock.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("a file");
    }
    let found = std::fs::read_to_string(&path).expect("include/resblock.h");
    assert!(found == made, "include/resblock.h is not up to date: UPDATE_HEADER=1 cargo test -p resblock-capi");
}
