// Which part of a task's memory the engine fills, and in which pieces.

import { expect, test } from "vitest";
import type { PagePlace, PlacedPages } from "../images/page-places.ts";
import { PE_PRESENT } from "../images/pagemap.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { VMA_ANON_PRIVATE } from "../objects/memory/vma.ts";
import { MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../sys/abi/mman.ts";
import { partPages, portions } from "./bulk-fill.ts";

const PAGE = 4096;
const MIB = 1024 * 1024;

test("the engine takes what lies in large areas that are plain memory", () => {
  const area = anonymous(0x10000000, 0x20000000);
  const one = place(0x10000000, { length: 96 * MIB, offset: 0 });
  const parted = partPages(task([area], [one]));
  expect(parted.bulk).toEqual([file([one])]);
  expect(parted.own).toEqual([]);
  expect([...parted.areas]).toEqual([area]);
});

test("one run of pages that reaches over several areas is cut at their borders", () => {
  const huge = { ...anonymous(0x20000000, 0x20200000), flags: MAP_PRIVATE | MAP_HUGETLB };
  const small = anonymous(0x20200000, 0x20201000);
  const areas = [anonymous(0x10000000, 0x20000000), huge, small];
  areas.push(anonymous(0x20201000, 0x30000000));
  const places = [
    place(0x1ff00000, { length: 4 * MIB + PAGE, offset: 0 }),
    place(0x28000000, { length: PAGE, offset: 4 * MIB + PAGE }),
  ];
  const parted = partPages(task(areas, places));
  const last = place(0x20201000, { length: MIB, offset: 3 * MIB + PAGE });
  expect(parted.bulk).toEqual([
    file([place(0x1ff00000, { length: MIB, offset: 0 }), last, places[1] as PagePlace]),
  ]);
  expect(parted.own).toEqual([
    file([
      place(0x20000000, { length: 2 * MIB, offset: MIB }),
      place(0x20200000, { length: PAGE, offset: 3 * MIB }),
    ]),
  ]);
  expect([...parted.areas]).toEqual([areas[0], areas[3]]);
});

test("what is between areas, and what children have too, is left to the task", () => {
  const shared = anonymous(0x10000000, 0x10400000);
  const areas = [shared, anonymous(0x10800000, 0x10c00000)];
  const places = [place(0x10000000, { length: 16 * MIB, offset: 0 })];
  const parted = partPages(task(areas, places, new Set([shared])));
  expect(parted.bulk).toEqual([file([place(0x10800000, { length: 4 * MIB, offset: 8 * MIB })])]);
  expect(parted.own).toEqual([
    file([
      place(0x10000000, { length: 8 * MIB, offset: 0 }),
      place(0x10c00000, { length: 4 * MIB, offset: 12 * MIB }),
    ]),
  ]);
});

test("places that follow each other in the file are read at once, a window at most", () => {
  const places = [
    place(0x10000000, { length: PAGE, offset: 0 }),
    place(0x10002000, { length: 2 * MIB, offset: PAGE }),
    place(0x20000000, { length: PAGE, offset: 4 * MIB }),
  ];
  expect([...portions(places)]).toEqual([
    {
      offset: 0,
      length: 2 * MIB,
      ranges: [
        { address: 0x10000000, length: PAGE },
        { address: 0x10002000, length: 2 * MIB - PAGE },
      ],
    },
    { offset: 2 * MIB, length: PAGE, ranges: [{ address: 0x10001000 + 2 * MIB, length: PAGE }] },
    { offset: 4 * MIB, length: PAGE, ranges: [{ address: 0x20000000, length: PAGE }] },
  ]);
});

function file(places: readonly PagePlace[]): PlacedPages {
  return { name: "pages-1.img", depth: 0, places };
}

function task(
  vmas: readonly VmaEntry[],
  places: readonly PagePlace[],
  early: ReadonlySet<VmaEntry> = new Set(),
): Parameters<typeof partPages>[0] {
  return { mm: { vmas }, memory: { latePages: [file(places)], early } };
}

function place(address: number, at: { length: number; offset: number }): PagePlace {
  return { address, ...at, flags: PE_PRESENT };
}

function anonymous(start: number, end: number): VmaEntry {
  return {
    start,
    end,
    pgoff: 0,
    shmid: 0,
    prot: PROT_READ | PROT_WRITE,
    flags: MAP_PRIVATE | MAP_ANONYMOUS,
    status: VMA_ANON_PRIVATE,
    fd: -1,
  };
}
