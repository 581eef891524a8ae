#include "model.h"

#include <stddef.h>

#include "placed.h"

#if BKNN_MODEL_ARENA_SIZE > 0
PLACED(".arena") static _Alignas(16) uint8_t arena[BKNN_MODEL_ARENA_SIZE];
#else
#define arena NULL
#endif

void model_run(const uint8_t *input, uint8_t *output)
{
    bknn_model_infer(arena, (const int8_t *)input, (int8_t *)output);
}
