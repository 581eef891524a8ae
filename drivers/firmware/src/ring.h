/* A queue of bytes between one writer and one reader, one of them an interrupt. */
#ifndef AI_RING_H
#define AI_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint8_t *data;
    uint32_t size; /* holds size - 1 bytes */
    _Atomic uint32_t head;
    _Atomic uint32_t tail;
} ring;

static inline uint32_t ring_after(const ring *queue, uint32_t index)
{
    return index + 1 == queue->size ? 0 : index + 1;
}

static inline bool ring_empty(ring *queue)
{
    return atomic_load_explicit(&queue->head, memory_order_acquire) ==
           atomic_load_explicit(&queue->tail, memory_order_acquire);
}

static inline bool ring_full(ring *queue)
{
    uint32_t head = atomic_load_explicit(&queue->head, memory_order_acquire);
    return ring_after(queue, head) == atomic_load_explicit(&queue->tail, memory_order_acquire);
}

static inline bool ring_put(ring *queue, uint8_t byte)
{
    uint32_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    uint32_t next = ring_after(queue, head);
    if (next == atomic_load_explicit(&queue->tail, memory_order_acquire)) {
        return false;
    }
    queue->data[head] = byte;
    atomic_store_explicit(&queue->head, next, memory_order_release);
    return true;
}

static inline bool ring_take(ring *queue, uint8_t *byte)
{
    uint32_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&queue->head, memory_order_acquire)) {
        return false;
    }
    *byte = queue->data[tail];
    atomic_store_explicit(&queue->tail, ring_after(queue, tail), memory_order_release);
    return true;
}

#endif
