// Memory of huge pages that were set aside (hugetlb; Documentation/admin-guide/mm/hugetlbpage.rst). Such memory always is a
// file of one of the kernel's own hugetlbfs mounts, one for each size of pages: its device number tells the size.

import { closeSync, fstatSync, readdirSync } from "node:fs";
import { deviceMajor, deviceMinor } from "../../proc/links.ts";
import type { SmapsVma } from "../../proc/smaps.ts";
import { MFD_CLOEXEC, MFD_HUGETLB } from "../../sys/abi/mman.ts";
import { trySyscall } from "../../sys/ffi.ts";

/** Where the logarithm of the page size stands in the flags of mmap and memfd_create. */
export const HUGE_SHIFT = 26;
/** Bits of that logarithm. */
export const HUGE_MASK = 0x3f * 2 ** HUGE_SHIFT;

/** The name of anonymous memory of huge pages. */
export const ANONYMOUS_HUGE = "/anon_hugepage";

interface Device {
  readonly devMajor: number;
  readonly devMinor: number;
}

let sizeBits: Map<string, number> | undefined;

/** The size bits for mmap and memfd_create of the kernel's own hugetlbfs with this device; undefined for other devices. */
export function hugeSizeBits({ devMajor, devMinor }: Device): number | undefined {
  // All file systems without a disk have the major number 0.
  if (devMajor !== 0) return undefined;
  sizeBits ??= new Map(pageSizes().flatMap(deviceOfSize));
  return sizeBits.get(`${devMajor}:${devMinor}`);
}

/** Whether an area is of huge pages that are private and have no file to share. */
export function isPrivateHuge(area: SmapsVma): boolean {
  return !area.shared && area.path.startsWith(ANONYMOUS_HUGE);
}

/** Sizes in bytes that the kernel offers. */
function pageSizes(): number[] {
  try {
    return readdirSync("/sys/kernel/mm/hugepages").map(
      (name) => Number.parseInt(name.replace("hugepages-", ""), 10) * 1024,
    );
  } catch {
    return []; // a kernel without huge pages
  }
}

function deviceOfSize(size: number): [string, number][] {
  const bits = Math.log2(size) * 2 ** HUGE_SHIFT;
  const fd = trySyscall("memfd_create", Buffer.from("reprise\0"), MFD_CLOEXEC + MFD_HUGETLB + bits);
  if (fd < 0) return [];
  const { dev } = fstatSync(fd, { bigint: true });
  closeSync(fd);
  return [[`${deviceMajor(dev)}:${deviceMinor(dev)}`, bits]];
}
