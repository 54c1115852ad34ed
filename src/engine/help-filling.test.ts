// Which part of a task's memory the engine fills, and in which pieces.

import { expect, test } from "vitest";
import type { PagePlace } from "../images/page-places.ts";
import { PE_PRESENT } from "../images/pagemap.ts";
import type { VmaEntry } from "../images/schema/messages.generated.ts";
import { VMA_ANON_PRIVATE } from "../objects/memory/vma.ts";
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../sys/abi/mman.ts";
import { partPages, portions } from "./help-filling.ts";

const PAGE = 4096;
const MIB = 1024 * 1024;

test("the engine takes the last third of a single stretch", () => {
  const area = anonymous(0x10000000, 0x20000000);
  const one = place(0x10000000, { length: 96 * MIB, offset: 0 });
  const parted = partPages(task([area], [one]), 1 / 3);
  expect(parted?.own).toEqual([
    { name: "pages-1.img", depth: 0, places: [{ ...one, length: 64 * MIB }] },
  ]);
  expect(parted?.places).toEqual([
    place(0x10000000 + 64 * MIB, { length: 32 * MIB, offset: 64 * MIB }),
  ]);
});

test("read-only memory is left to the task, also where one run of pages reaches over it", () => {
  const readOnly = { ...anonymous(0x20000000, 0x20001000), prot: PROT_READ };
  const areas = [anonymous(0x10000000, 0x20000000), readOnly, anonymous(0x20001000, 0x30000000)];
  const places = [
    place(0x10000000, { length: 4 * PAGE, offset: 0 }),
    place(0x1ffff000, { length: 3 * PAGE, offset: 4 * PAGE }),
    place(0x28000000, { length: PAGE, offset: 7 * PAGE }),
    place(0x29000000, { length: PAGE, offset: 8 * PAGE }),
  ];
  const parted = partPages(task(areas, places), 1 / 3);
  const [first, mixed, ...last] = places as [PagePlace, PagePlace, PagePlace, PagePlace];
  const kept = { ...first, length: 3 * PAGE };
  const taken = place(first.address + 3 * PAGE, { length: PAGE, offset: 3 * PAGE });
  expect(parted?.places).toEqual([taken, ...last]);
  expect(parted?.own[0]?.places).toEqual([kept, mixed]);
  expect(partPages(task([readOnly], [place(0x20000000, { length: PAGE, offset: 0 })]), 1 / 3)).toBe(
    undefined,
  );
});

test("places that follow each other in the file are read at once, a megabyte at most", () => {
  const places = [
    place(0x10000000, { length: PAGE, offset: 0 }),
    place(0x10002000, { length: MIB, offset: PAGE }),
    place(0x20000000, { length: PAGE, offset: 4 * MIB }),
  ];
  expect([...portions(places)]).toEqual([
    {
      offset: 0,
      length: MIB,
      ranges: [
        { address: 0x10000000, length: PAGE },
        { address: 0x10002000, length: MIB - PAGE },
      ],
    },
    { offset: MIB, length: PAGE, ranges: [{ address: 0x10002000 + MIB - PAGE, length: PAGE }] },
    { offset: 4 * MIB, length: PAGE, ranges: [{ address: 0x20000000, length: PAGE }] },
  ]);
});

function task(
  vmas: readonly VmaEntry[],
  places: readonly PagePlace[],
): Parameters<typeof partPages>[0] {
  return { mm: { vmas }, memory: { latePages: [{ name: "pages-1.img", depth: 0, places }] } };
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
