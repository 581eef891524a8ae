#include "model.h"

#include <stddef.h>

#ifdef __arm__ /* the linker script says which memory it is in */
#define ARENA_SECTION __attribute__((section(".arena")))
#else
#define ARENA_SECTION
#endif

#if BKNN_MODEL_ARENA_SIZE > 0
static _Alignas(16) ARENA_SECTION uint8_t arena[BKNN_MODEL_ARENA_SIZE];
#else
#define arena NULL
#endif

void model_run(const uint8_t *input, uint8_t *output)
{
    bknn_model_infer(arena, (const int8_t *)input, (int8_t *)output);
}
