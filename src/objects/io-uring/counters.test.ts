// How a new ring gets to the counters of an old one: what is done in which order, also where the counters have wrapped.
import { expect, test } from "vitest";
import type { RepriseIoUringEntry } from "../../images/schema/messages.generated.ts";
import { segmentsOf, type Segment } from "./counters.ts";

const CQ_HEAD = 8;

/** A saved ring with 16 places for completions, by what matters here. */
function ring(counts: {
  readonly taken: number;
  readonly completed: number;
  /** Where the program takes its next completion from. */
  readonly head: number;
  readonly drain?: boolean;
  readonly waiting?: number;
}): RepriseIoUringEntry {
  const cq_off = Buffer.alloc(40);
  cq_off.writeUInt32LE(CQ_HEAD, 0);
  const rings = Buffer.alloc(64);
  rings.writeUInt32LE(counts.head >>> 0, CQ_HEAD);
  const request = { thread: 1, entry: Buffer.alloc(64) };
  return {
    id: 1,
    flags: 0,
    setup_flags: 0,
    sq_entries: 8,
    cq_entries: 16,
    sq_head: counts.taken,
    cq_tail: counts.completed,
    sq_off: Buffer.alloc(40),
    cq_off,
    rings_size: rings.length,
    entries_size: 512,
    rings,
    entries: Buffer.alloc(0),
    files: [],
    buffers: [],
    file_tags: [],
    buffer_tags: [],
    worker_limits: [],
    registrations: [],
    requests: Array.from({ length: counts.waiting ?? 0 }, () => request),
    ...(counts.drain === true ? { drain_disabled: true } : {}),
  };
}

const NOTHING: Segment[] = [];

test.each<{
  readonly what: string;
  readonly ring: RepriseIoUringEntry;
  readonly segments: Segment[];
}>([
  {
    what: "a new one",
    ring: ring({ taken: 0, completed: 0, head: 0 }),
    segments: NOTHING,
  },
  {
    what: "all completions taken",
    ring: ring({ taken: 100, completed: 100, head: 100 }),
    segments: [{ what: "request", count: 100, taken: true }],
  },
  {
    what: "some wait",
    ring: ring({ taken: 100, completed: 100, head: 95 }),
    segments: [
      { what: "request", count: 95, taken: true },
      { what: "request", count: 5, taken: false },
    ],
  },
  {
    what: "requests wait",
    ring: ring({ taken: 100, completed: 98, head: 98, waiting: 2 }),
    segments: [{ what: "request", count: 98, taken: true }],
  },
  {
    what: "more completions than requests, some wait",
    ring: ring({ taken: 10, completed: 100, head: 95 }),
    segments: [
      { what: "request", count: 10, taken: true },
      { what: "post", count: 85, taken: true },
      { what: "post", count: 5, taken: false },
    ],
  },
  {
    what: "more completions than requests, of which some wait",
    ring: ring({ taken: 10, completed: 12, head: 8 }),
    segments: [
      { what: "request", count: 8, taken: true },
      { what: "request", count: 2, taken: false },
      { what: "post", count: 2, taken: false },
    ],
  },
  {
    what: "requests without completions",
    ring: ring({ taken: 100, completed: 40, head: 40, drain: true }),
    segments: [
      { what: "request", count: 40, taken: true },
      { what: "skip", count: 60, taken: false },
    ],
  },
  {
    what: "entries that were dropped",
    ring: ring({ taken: 42, completed: 40, head: 40 }),
    segments: [
      { what: "request", count: 40, taken: true },
      { what: "drop", count: 2, taken: false },
    ],
  },
  {
    what: "a tail that has wrapped, and a head that has not",
    ring: ring({ taken: 3, completed: 3, head: -2 }),
    segments: [{ what: "request", count: 3, taken: false }],
  },
])("$what", ({ ring: saved, segments }) => {
  expect(segmentsOf(saved)).toEqual(segments);
});
