// Filling memory from outside, tried on memory of this process.

import { readFileSync } from "node:fs";
import { expect, onTestFinished, test } from "vitest";
import type { VmaEntry } from "../../images/schema/messages.generated.ts";
import * as mm from "../../sys/abi/mman.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { UFFD_USER_MODE_ONLY } from "../../sys/abi/userfault.ts";
import { memoryAt, syscall, trySyscall } from "../../sys/ffi.ts";
import { MissingMemory } from "./missing.ts";
import { VMA_ANON_PRIVATE, VMA_REGULAR } from "./vma.ts";

const PAGES = 64;
const LENGTH = PAGES * mm.PAGE_SIZE;

test.each(["a userfaultfd", "none"])("pages come into their places with %s", (what) => {
  const area = mapArea();
  const fd = what === "none" ? -1 : syscall("userfaultfd", O_CLOEXEC | UFFD_USER_MODE_ONLY);
  const before = lineOf(area.start);
  {
    using missing = new MissingMemory(process.pid, { fd, areas: [area] });
    if (fd >= 0) expect(lineOf(area.start, "smaps")).toContain(" um");
    const bytes = Buffer.alloc(3 * mm.PAGE_SIZE);
    for (let page = 0; page < 3; page++)
      bytes.fill(page + 1, page * mm.PAGE_SIZE, (page + 1) * mm.PAGE_SIZE);
    missing.put(
      [
        { address: area.start + mm.PAGE_SIZE, length: 2 * mm.PAGE_SIZE },
        { address: area.end - mm.PAGE_SIZE, length: mm.PAGE_SIZE },
      ],
      bytes,
    );
  }
  expect(lineOf(area.start)).toBe(before);
  expect(lineOf(area.start, "smaps")).not.toContain(" um");
  const memory = memoryAt(area.start, LENGTH);
  const first = Array.from({ length: PAGES }, (_, page) => memory[page * mm.PAGE_SIZE]);
  expect(first).toEqual([0, 1, 2, ...Array<number>(PAGES - 4).fill(0), 3]);
  expect(memory[3 * mm.PAGE_SIZE - 1]).toBe(2);
  if (fd >= 0) syscall("close", fd);
});

test("a page that is there already is an error that says where", () => {
  const area = mapArea();
  memoryAt(area.start, LENGTH)[0] = 1;
  const fd = syscall("userfaultfd", O_CLOEXEC | UFFD_USER_MODE_ONLY);
  onTestFinished(() => void trySyscall("close", fd));
  using missing = new MissingMemory(process.pid, { fd, areas: [area] });
  const page = Buffer.alloc(mm.PAGE_SIZE);
  expect(() => missing.put([{ address: area.start, length: page.length }], page)).toThrow(
    `cannot fill memory ${area.start.toString(16)} of pid ${process.pid}: ioctl: EEXIST`,
  );
});

function mapArea(): VmaEntry {
  const flags = mm.MAP_PRIVATE | mm.MAP_ANONYMOUS;
  const prot = mm.PROT_READ | mm.PROT_WRITE;
  // Executable memory does not become one with its neighbours.
  const start = syscall("mmap", 0, LENGTH, prot | mm.PROT_EXEC, flags, -1, 0);
  onTestFinished(() => void syscall("munmap", start, LENGTH));
  const status = VMA_REGULAR | VMA_ANON_PRIVATE;
  return { start, end: start + LENGTH, pgoff: 0, shmid: 0, prot, flags, status, fd: -1 };
}

/** What the kernel tells of the area at an address. */
function lineOf(address: number, file = "maps"): string {
  const text = readFileSync(`/proc/self/${file}`, "utf8");
  const start = text.indexOf(`${address.toString(16)}-`);
  const end = file === "maps" ? text.indexOf("\n", start) : text.indexOf("VmFlags", start) + 80;
  return text.slice(start, end);
}
