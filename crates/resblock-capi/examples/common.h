/* What the examples share: stop with the library's own words. */
#ifndef COMMON_H
#define COMMON_H

#include "resblock.h"

#include <stdio.h>
#include <stdlib.h>

static inline void must(resblock_status status, const char *what) {
  if (status != RESBLOCK_STATUS_OK) {
    fprintf(stderr, "%s: %s\n", what, resblock_last_error());
    exit(1);
  }
}

static inline float *floats(size_t count) {
  float *made = (float *)calloc(count ? count : 1, sizeof(float));
  if (!made) {
    fprintf(stderr, "out of memory\n");
    exit(1);
  }
  return made;
}

/* Row-major, without gaps. */
static inline resblock_const_matrix rows_of(const float *data, size_t rows, size_t cols) {
  resblock_const_matrix made = {data, rows, cols, 0, 0};
  return made;
}

static inline resblock_matrix rows_of_mut(float *data, size_t rows, size_t cols) {
  resblock_matrix made = {data, rows, cols, 0, 0};
  return made;
}

#endif
