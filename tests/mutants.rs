//! Tests that mutants of the code asked for: what no other test would have noticed (docs/mutants.md).

mod common;

use common::{mat, mat_mut};
use resblock::mean_squared_error;

#[test]
fn the_mean_of_squares_is_over_all_elements() {
    // Of a 2 x 2 case, rows + columns are as many as rows * columns.
    let mut d = [0.0; 6];
    let (y, target) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 2.0, 3.0, 4.0, 5.0, 9.0]);
    let loss = mean_squared_error(mat(&y, 2, 3), mat(&target, 2, 3), Some(mat_mut(&mut d, 2, 3)));
    assert_eq!(loss, Ok(10.0 / 6.0));
    assert_eq!(d, [(1.0 / 3.0) as f32, 0.0, 0.0, 0.0, 0.0, -1.0]);
}
