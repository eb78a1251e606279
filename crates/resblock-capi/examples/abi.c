/* The promises of the header, one after the other. Prints what is broken, and fails. */
#include "common.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) failures++, printf("line %d: not so: %s\n", __LINE__, #condition); \
  } while (0)

/* That a call is refused for this reason, and that the message has this in it. */
#define REFUSED(call, reason, text)                                                                       \
  do {                                                                                                    \
    resblock_status found = (call);                                                                       \
    if (found != (reason) || !strstr(resblock_last_error(), text))                                        \
      failures++, printf("line %d: status %d, \"%s\"\n", __LINE__, (int)found, resblock_last_error());    \
  } while (0)

enum { ROWS = 70, INPUTS = 48, HIDDEN = 80, OUTPUTS = 48, MOST = 12 };

/* A function with its parameters, and what calls of it need. */
typedef struct {
  resblock_function *function;
  size_t count, lens[MOST], record_len;
  float *values[MOST], *grads[MOST], *record;
  resblock_parameter params[MOST];
  resblock_gradient places[MOST];
} net;

static net net_new(resblock_form form) {
  net n;
  memset(&n, 0, sizeof n);
  resblock_formula formula = resblock_formula_block(form);
  must(resblock_function_new(&formula, 1, false, &n.function), "function");
  must(resblock_function_sizes(n.function, NULL, NULL, &n.count), "sizes");
  for (size_t i = 0; i < n.count; i++) {
    resblock_tensor tensor;
    must(resblock_function_tensor(n.function, i, &tensor), "tensor");
    n.lens[i] = tensor.rows * tensor.cols;
    n.values[i] = floats(n.lens[i]), n.grads[i] = floats(n.lens[i]);
    n.params[i].data = n.values[i], n.places[i].data = n.grads[i];
  }
  must(resblock_init(n.function, 7, n.values, n.count), "init");
  must(resblock_record_len(n.function, ROWS, &n.record_len), "record_len");
  n.record = floats(n.record_len);
  return n;
}

static void net_free(net n) {
  for (size_t i = 0; i < n.count; i++) free(n.values[i]), free(n.grads[i]);
  free(n.record);
  resblock_function_free(n.function);
}

/* A loop on threads of POSIX's, one for each turn. */
typedef struct {
  resblock_body body;
  void *arg;
  size_t index;
} turn;

static void *begin(void *at) {
  turn *t = (turn *)at;
  t->body(t->arg, t->index);
  return NULL;
}

static void on_threads(void *user, size_t count, resblock_body body, void *arg) {
  pthread_t threads[16];
  turn turns[16];
  *(int *)user += 1;
  for (size_t i = 0; i < count && i < 16; i++) {
    turns[i].body = body, turns[i].arg = arg, turns[i].index = i;
    if (pthread_create(&threads[i], NULL, begin, &turns[i])) exit(1);
  }
  for (size_t i = 0; i < count && i < 16; i++) pthread_join(threads[i], NULL);
}

static void one_after_the_other(void *user, size_t count, resblock_body body, void *arg) {
  (void)user;
  for (size_t i = 0; i < count; i++) body(arg, i);
}

static double loss(net *n, resblock_context *context, resblock_workspace *ws, const float *x, const float *weights, float *y) {
  double sum = 0;
  must(resblock_infer(n->function, context, ws, n->params, n->count, rows_of(x, ROWS, INPUTS), rows_of_mut(y, ROWS, OUTPUTS)), "infer");
  for (size_t i = 0; i < ROWS * OUTPUTS; i++) sum += (double)y[i] * (double)weights[i];
  return sum;
}

/* The gradient of `values` against a central difference along the gradient itself. */
static void differences(net *n, resblock_context *context, resblock_workspace *ws, const float *x, const float *weights,
                        float *values, const float *grads, size_t len) {
  double norm = 0;
  float *kept = floats(len), *y = floats(ROWS * OUTPUTS);
  memcpy(kept, values, len * sizeof *kept);
  for (size_t i = 0; i < len; i++) norm += (double)grads[i] * (double)grads[i];
  norm = sqrt(norm);
  double found[2];
  for (int side = 0; side < 2; side++) {
    for (size_t i = 0; i < len; i++) values[i] = kept[i] + (float)((side ? -0.002 : 0.002) * (double)grads[i] / norm);
    found[side] = loss(n, context, ws, x, weights, y);
  }
  double slope = (found[0] - found[1]) / 0.004;
  if (!(norm > 0 && fabs(slope - norm) < 0.02 * norm)) failures++, printf("%zu gradients: norm %g, slope %g\n", len, norm, slope);
  memcpy(values, kept, len * sizeof *kept);
  free(kept), free(y);
}

int main(void) {
  resblock_context *context;
  must(resblock_context_new(&context), "context");
  resblock_workspace *ws = resblock_workspace_new();
  float *x = floats(ROWS * INPUTS), *y = floats(ROWS * OUTPUTS), *dy = floats(ROWS * OUTPUTS), *dx = floats(ROWS * INPUTS);
  float *y2 = floats(ROWS * OUTPUTS), *dx2 = floats(ROWS * INPUTS), *turned = floats(HIDDEN * INPUTS);
  for (size_t i = 0; i < ROWS * INPUTS; i++) x[i] = (float)sin((double)i * 0.37);
  for (size_t i = 0; i < ROWS * OUTPUTS; i++) dy[i] = (float)cos((double)i * 0.11);
  resblock_const_matrix in = rows_of(x, ROWS, INPUTS), din = rows_of(dy, ROWS, OUTPUTS);
  resblock_matrix out = rows_of_mut(y, ROWS, OUTPUTS), out2 = rows_of_mut(y2, ROWS, OUTPUTS);
  resblock_matrix dout = rows_of_mut(dx, ROWS, INPUTS), dout2 = rows_of_mut(dx2, ROWS, INPUTS);
  CHECK(strlen(resblock_version()) > 0);

  static const char *const names[] = {"gpt2", "bert", "llama", "cait", "rezero", "sandwich"};
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    resblock_form form;
    must(resblock_form_named(names[k], INPUTS, HIDDEN, &form), names[k]);
    net n = net_new(form);
    if (!strcmp(names[k], "rezero"))
      for (size_t i = 0; i < n.count; i++)
        if (n.lens[i] == 1) n.values[i][0] = 0.5f;
    must(resblock_forward(n.function, context, ws, n.params, n.count, in, out, n.record, n.record_len), "forward");
    must(resblock_backward(n.function, context, ws, n.params, n.count, n.record, n.record_len, din, &dout, n.places, RESBLOCK_OVERWRITE),
         "backward");
    differences(&n, context, ws, x, dy, x, dx, ROWS * INPUTS);
    for (size_t i = 0; i < n.count; i++) differences(&n, context, ws, x, dy, n.values[i], n.grads[i], n.lens[i]);

    /* The same bits by any threads, from weights that lie the other way round, and from a packed copy. */
    for (size_t j = 0; j < INPUTS; j++)
      for (size_t i = 0; i < HIDDEN; i++) turned[j * HIDDEN + i] = n.values[0][i * INPUTS + j];
    resblock_parameter straight = n.params[0], other = {turned, 1, HIDDEN};
    int asked = 0;
    for (int way = 0; way < 5; way++) {
      if (way == 1) must(resblock_context_set_threads(context, 4), "threads");
      if (way == 2) must(resblock_context_set_parallel_for(context, 4, on_threads, &asked), "parallel_for");
      if (way == 3) must(resblock_context_set_parallel_for(context, 3, one_after_the_other, NULL), "parallel_for");
      n.params[0] = way % 2 ? other : straight;
      float *kept[MOST];
      for (size_t i = 0; i < n.count; i++) kept[i] = floats(n.lens[i]), memcpy(kept[i], n.grads[i], n.lens[i] * sizeof(float));
      must(resblock_forward(n.function, context, ws, n.params, n.count, in, out2, n.record, n.record_len), "forward");
      must(resblock_backward(n.function, context, ws, n.params, n.count, n.record, n.record_len, din, &dout2, n.places,
                             RESBLOCK_OVERWRITE),
           "backward");
      CHECK(!memcmp(y, y2, ROWS * OUTPUTS * sizeof *y) && !memcmp(dx, dx2, ROWS * INPUTS * sizeof *dx));
      for (size_t i = 0; i < n.count; i++) CHECK(!memcmp(kept[i], n.grads[i], n.lens[i] * sizeof(float)));
      for (size_t i = 0; i < n.count; i++) free(kept[i]);
      if (way == 3) must(resblock_context_set_threads(context, 1), "threads");
    }
    CHECK(asked == 2);
    n.params[0] = straight;
    resblock_layer *layer;
    must(resblock_layer_pack(n.function, n.params, n.count, &layer), "pack");
    must(resblock_layer_infer(layer, context, ws, in, out2), "infer");
    CHECK(!memcmp(y, y2, ROWS * OUTPUTS * sizeof *y));
    resblock_layer_free(layer);

    /* What is not wanted is left alone; accumulation adds. */
    for (size_t i = 0; i < n.lens[0]; i++) n.grads[0][i] = 0;
    resblock_gradient some[MOST];
    memcpy(some, n.places, sizeof some);
    some[0].data = NULL;
    must(resblock_backward(n.function, context, ws, n.params, n.count, n.record, n.record_len, din, NULL, some, RESBLOCK_ACCUMULATE),
         "backward");
    for (size_t i = 0; i < n.lens[0]; i++) CHECK(n.grads[0][i] == 0);
    net_free(n);
  }

  /* No rows, and rows that are NaN. */
  resblock_form form;
  must(resblock_form_named("gpt2", INPUTS, HIDDEN, &form), "gpt2");
  net n = net_new(form);
  must(resblock_infer(n.function, context, ws, n.params, n.count, rows_of(NULL, 0, INPUTS), rows_of_mut(NULL, 0, OUTPUTS)), "no rows");
  must(resblock_infer(n.function, context, ws, n.params, n.count, in, out), "infer");
  x[3 * INPUTS] = NAN;
  must(resblock_infer(n.function, context, ws, n.params, n.count, in, out2), "infer");
  CHECK(isnan(y2[3 * OUTPUTS + 5]));
  CHECK(!memcmp(y, y2, 3 * OUTPUTS * sizeof *y) && !memcmp(y + 4 * OUTPUTS, y2 + 4 * OUTPUTS, (ROWS - 4) * OUTPUTS * sizeof *y));
  x[3 * INPUTS] = 0;

  /* What is refused, and that nothing is written then. */
  must(resblock_forward(n.function, context, ws, n.params, n.count, in, out, n.record, n.record_len), "forward");
  memcpy(y2, y, ROWS * OUTPUTS * sizeof *y);
#define INFER(f, c, w, p, count, x, y) resblock_infer(f, c, w, p, count, x, y)
  REFUSED(INFER(NULL, context, ws, n.params, n.count, in, out), RESBLOCK_STATUS_NULL_POINTER, "function");
  REFUSED(INFER(n.function, NULL, ws, n.params, n.count, in, out), RESBLOCK_STATUS_NULL_POINTER, "context");
  REFUSED(INFER(n.function, context, NULL, n.params, n.count, in, out), RESBLOCK_STATUS_NULL_POINTER, "workspace");
  REFUSED(INFER(n.function, context, ws, NULL, n.count, in, out), RESBLOCK_STATUS_NULL_POINTER, "params");
  REFUSED(INFER(n.function, context, ws, n.params, n.count - 1, in, out), RESBLOCK_STATUS_LENGTH, "params");
  REFUSED(INFER(n.function, context, ws, n.params, n.count, rows_of(NULL, ROWS, INPUTS), out), RESBLOCK_STATUS_NULL_POINTER, "x");
  REFUSED(INFER(n.function, context, ws, n.params, n.count, rows_of(x, ROWS, INPUTS - 1), out), RESBLOCK_STATUS_SHAPE, "x");
  REFUSED(INFER(n.function, context, ws, n.params, n.count, in, rows_of_mut(y, ROWS - 1, OUTPUTS)), RESBLOCK_STATUS_SHAPE, "y");
  resblock_const_matrix vast = {x, SIZE_MAX, INPUTS, SIZE_MAX / 2, 1};
  REFUSED(INFER(n.function, context, ws, n.params, n.count, vast, out), RESBLOCK_STATUS_OVERFLOW, "x");
  resblock_matrix folded = {y, ROWS, OUTPUTS, 0, 1};
  REFUSED(INFER(n.function, context, ws, n.params, n.count, in, folded), RESBLOCK_STATUS_SETTING, "overlap");
  REFUSED(resblock_forward(n.function, context, ws, n.params, n.count, in, out, n.record, n.record_len - 1), RESBLOCK_STATUS_LENGTH, "record");
#define BACKWARD(record, len, dy, mode) \
  resblock_backward(n.function, context, ws, n.params, n.count, record, len, dy, &dout, n.places, mode)
  REFUSED(BACKWARD(n.record, n.record_len, din, 2), RESBLOCK_STATUS_SETTING, "mode");
  REFUSED(BACKWARD(NULL, n.record_len, din, 0), RESBLOCK_STATUS_NULL_POINTER, "record");
  REFUSED(BACKWARD(n.record, n.record_len, rows_of(dy, ROWS, OUTPUTS + 1), 0), RESBLOCK_STATUS_SHAPE, "dy");
  n.record[0] += 1;
  REFUSED(BACKWARD(n.record, n.record_len, din, 0), RESBLOCK_STATUS_RECORD, "rows");
  CHECK(!memcmp(y, y2, ROWS * OUTPUTS * sizeof *y));

  resblock_function *none = NULL;
  resblock_formula formula = resblock_formula_block(form);
  REFUSED(resblock_function_new(NULL, 1, false, &none), RESBLOCK_STATUS_NULL_POINTER, "formulas");
  REFUSED(resblock_function_new(&formula, 0, false, &none), RESBLOCK_STATUS_SETTING, "parts");
  REFUSED(resblock_function_new(&formula, 1, false, NULL), RESBLOCK_STATUS_NULL_POINTER, "out");
  formula.block.activation.kind = 99;
  REFUSED(resblock_function_new(&formula, 1, false, &none), RESBLOCK_STATUS_SETTING, "activation");
  formula = resblock_formula_block(form), formula.block.pre_norm.epsilon = -1;
  REFUSED(resblock_function_new(&formula, 1, false, &none), RESBLOCK_STATUS_SETTING, "epsilon");
  formula = resblock_formula_block(form), formula.block.skip = 7;
  REFUSED(resblock_function_new(&formula, 1, false, &none), RESBLOCK_STATUS_SETTING, "skip");
  formula = resblock_formula_block(form), formula.kind = 8;
  REFUSED(resblock_function_new(&formula, 1, false, &none), RESBLOCK_STATUS_SETTING, "kind");
  formula = resblock_formula_block(form), formula.block.outputs = 3;
  REFUSED(resblock_function_new(&formula, 1, false, &none), RESBLOCK_STATUS_SHAPE, "second weights");
  CHECK(none == NULL);
  REFUSED(resblock_form_named("gpt5", 1, 1, &form), RESBLOCK_STATUS_SETTING, "gpt5");
  REFUSED(resblock_context_set_isa(context, "sse9"), RESBLOCK_STATUS_ISA, "sse9");
  REFUSED(resblock_context_set_threads(NULL, 1), RESBLOCK_STATUS_NULL_POINTER, "context");
  resblock_layer *layer = NULL;
  formula = resblock_formula_block(form);
  REFUSED(resblock_layer_load("/nowhere/net.safetensors", &formula, 1, &layer), RESBLOCK_STATUS_FILE, "nowhere");
  resblock_tensor tensor;
  REFUSED(resblock_function_tensor(n.function, 99, &tensor), RESBLOCK_STATUS_LENGTH, "index");
  size_t len, labels[2] = {0, 5};
  REFUSED(resblock_record_len(n.function, SIZE_MAX / 8, &len), RESBLOCK_STATUS_OVERFLOW, "");
  double value;
  REFUSED(resblock_softmax_cross_entropy(rows_of(x, 2, 3), labels, NULL, &value), RESBLOCK_STATUS_SETTING, "labels[1]");
  resblock_function_free(NULL), resblock_context_free(NULL), resblock_workspace_free(NULL), resblock_layer_free(NULL);

  net_free(n);
  free(x), free(y), free(dy), free(dx), free(y2), free(dx2), free(turned);
  resblock_workspace_free(ws), resblock_context_free(context);
  printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
