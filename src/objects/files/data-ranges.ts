// Where a sparse file has data: lseek(2) with SEEK_DATA and SEEK_HOLE. A file system that does not know them says that all
// is data.

import { errnoName } from "../../sys/errno.ts";
import { RepriseError } from "../../errors.ts";
import { trySyscall } from "../../sys/ffi.ts";

/** Bytes from `start` up to, not including, `end`. */
export interface DataRange {
  readonly start: number;
  readonly end: number;
}

/** "No such device or address": no data from there on. */
const ENXIO = 6;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/**
 * Ranges of data below `size`, ascending. Moves the position of `fd`: give a descriptor of your own.
 * @throws RepriseError SYSCALL
 */
export function dataRanges(fd: number, size: number): DataRange[] {
  const ranges: DataRange[] = [];
  for (let at = 0; at < size;) {
    const start = trySyscall("lseek", fd, at, SEEK_DATA);
    // No data from here on.
    if (start === -ENXIO) break;
    const end = start < 0 ? start : trySyscall("lseek", fd, start, SEEK_HOLE);
    if (end < 0) {
      throw new RepriseError(
        "SYSCALL",
        `cannot find the holes of a file: lseek: ${errnoName(-end)}`,
        {
          syscall: "lseek",
          errno: errnoName(-end),
        },
      );
    }
    if (start < size) ranges.push({ start, end: Math.min(end, size) });
    at = end;
  }
  return ranges;
}
