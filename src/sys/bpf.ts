// bpf(2) on maps and programs, by the engine itself. One union, bpf_attr, holds the arguments of every command:
// include/uapi/linux/bpf.h, kernel/bpf/syscall.c.

import { closeSync, readlinkSync } from "node:fs";
import * as bpf from "./abi/bpf.ts";
import { ENOENT, ENOSPC } from "./errno.ts";
import { addressOf, syscall, syscallError, trySyscall } from "./ffi.ts";
import { writeU64 } from "./memory.ts";

/** What the kernel tells about a map (struct bpf_map_info). */
export interface BpfMapInfo {
  readonly type: number;
  readonly id: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly flags: number;
  readonly name: string;
  /** The network device that holds it; 0 for a map in memory. */
  readonly ifindex: number;
  /** Its description of types; 0 for a map without. */
  readonly btfId: number;
  readonly extra: bigint;
}

const MAP_INFO_SIZE = 88;

/** @throws RepriseError SYSCALL */
export function mapInfo(fd: number): BpfMapInfo {
  const info = infoOf(fd, Buffer.alloc(MAP_INFO_SIZE));
  const word = (offset: number): number => info.readUInt32LE(offset);
  return {
    type: word(0),
    id: word(4),
    keySize: word(8),
    valueSize: word(12),
    maxEntries: word(16),
    flags: word(20),
    name: info.toString("latin1", 24, 24 + bpf.BPF_NAME_SIZE).replace(/\0.*$/s, ""),
    ifindex: word(40),
    btfId: word(64),
    extra: info.readBigUInt64LE(80),
  };
}

/** A descriptor by which everything can be done with a map, whatever `fd` may do. */
export function openMapFully(fd: number): number {
  const attr = Buffer.alloc(12);
  attr.writeUInt32LE(mapInfo(fd).id, 0);
  return syscall("bpf", bpf.BPF_MAP_GET_FD_BY_ID, attr, attr.length);
}

/** How many bytes a key and a value have where they are handed over. */
export interface ElementSizes {
  readonly key: number;
  readonly value: number;
}

/** Elements of a map: keys one after the other, and their values. */
export interface Elements {
  readonly count: number;
  readonly keys: Buffer;
  readonly values: Buffer;
}

/** So many bytes of keys and values are handed over in one call, or one element. */
const BATCH_BYTES = 4 << 20;

function elementsInBatch({ key, value }: ElementSizes): number {
  return Math.max(1, Math.floor(BATCH_BYTES / (key + value)));
}

/**
 * Reads a map, whose content stays.
 *
 * @throws RepriseError SYSCALL
 */
export function readElements(
  fd: number,
  { sizes, max }: { readonly sizes: ElementSizes; readonly max: number },
): Elements {
  const keys: Buffer[] = [];
  const values: Buffer[] = [];
  let room = Math.min(elementsInBatch(sizes), max);
  let total = 0;
  let from: Buffer | undefined;
  for (;;) {
    // Position of the walk: a key, or a number of a bucket.
    const next = Buffer.alloc(Math.max(sizes.key, 8));
    const batch = {
      keys: Buffer.alloc(room * sizes.key),
      values: Buffer.alloc(room * sizes.value),
    };
    const attr = batchAttr(fd, { ...batch, count: room });
    if (from !== undefined) writeU64(attr, 0, addressOf(from));
    writeU64(attr, 8, addressOf(next));
    const result = trySyscall("bpf", bpf.BPF_MAP_LOOKUP_BATCH, attr, attr.length);
    if (result === -ENOSPC) {
      room *= 2; // what is in one bucket must fit
      continue;
    }
    if (result < 0 && result !== -ENOENT)
      throw syscallError("bpf", -result, "read the elements of a bpf map");
    const count = attr.readUInt32LE(BATCH_COUNT);
    keys.push(batch.keys.subarray(0, count * sizes.key));
    values.push(batch.values.subarray(0, count * sizes.value));
    total += count;
    if (result === -ENOENT) break;
    from = next;
  }
  return { count: total, keys: Buffer.concat(keys), values: Buffer.concat(values) };
}

/** @throws RepriseError SYSCALL */
export function writeElements(fd: number, elements: Elements, sizes: ElementSizes): void {
  const step = elementsInBatch(sizes);
  for (let at = 0; at < elements.count; at += step) {
    const count = Math.min(step, elements.count - at);
    const keys = elements.keys.subarray(at * sizes.key, (at + count) * sizes.key);
    const values = elements.values.subarray(at * sizes.value, (at + count) * sizes.value);
    const attr = batchAttr(fd, { keys, values, count });
    const result = trySyscall("bpf", bpf.BPF_MAP_UPDATE_BATCH, attr, attr.length);
    if (result < 0) throw syscallError("bpf", -result, "fill a bpf map");
  }
}

const BATCH_COUNT = 32;

function batchAttr(fd: number, { keys, values, count }: Elements): Buffer {
  const attr = Buffer.alloc(56);
  writeU64(attr, 16, addressOf(keys));
  writeU64(attr, 24, addressOf(values));
  attr.writeUInt32LE(count, BATCH_COUNT);
  attr.writeInt32LE(fd, 36);
  return attr;
}

/** No system call can change the map from now on. */
export function freezeMap(fd: number): void {
  const attr = Buffer.alloc(4);
  attr.writeInt32LE(fd, 0);
  syscall("bpf", bpf.BPF_MAP_FREEZE, attr, attr.length);
}

/** The loaded programs that use a map, by their ids. */
export function programsWithMap(mapId: number): number[] {
  const programs: number[] = [];
  const attr = Buffer.alloc(12);
  while (trySyscall("bpf", bpf.BPF_PROG_GET_NEXT_ID, attr, attr.length) === 0) {
    const id = attr.readUInt32LE(4);
    attr.writeUInt32LE(id, 0);
    const byId = Buffer.alloc(12);
    byId.writeUInt32LE(id, 0);
    const fd = trySyscall("bpf", bpf.BPF_PROG_GET_FD_BY_ID, byId, byId.length);
    if (fd === -ENOENT) continue; // it has just gone
    if (fd < 0) throw syscallError("bpf", -fd, `look at bpf program ${id}`);
    try {
      if (mapsOfProgram(fd).includes(mapId)) programs.push(id);
    } finally {
      closeSync(fd);
    }
  }
  return programs;
}

/** struct bpf_prog_info up to map_ids: their number, then the address of a list for them. */
const PROGRAM_INFO_SIZE = 64;
const PROGRAM_NR_MAPS = 52;
const PROGRAM_MAP_IDS = 56;

function mapsOfProgram(fd: number): number[] {
  const count = infoOf(fd, Buffer.alloc(PROGRAM_INFO_SIZE)).readUInt32LE(PROGRAM_NR_MAPS);
  if (count === 0) return [];
  const ids = Buffer.alloc(count * 4);
  const info = Buffer.alloc(PROGRAM_INFO_SIZE);
  info.writeUInt32LE(count, PROGRAM_NR_MAPS);
  writeU64(info, PROGRAM_MAP_IDS, addressOf(ids));
  infoOf(fd, info);
  return Array.from({ length: count }, (_, index) => ids.readUInt32LE(index * 4));
}

function infoOf(fd: number, info: Buffer): Buffer {
  const attr = Buffer.alloc(16);
  attr.writeInt32LE(fd, 0);
  attr.writeUInt32LE(info.length, 4);
  writeU64(attr, 8, addressOf(info));
  syscall("bpf", bpf.BPF_OBJ_GET_INFO_BY_FD, attr, attr.length);
  return info;
}

/** The id of the map that a name in a bpf file system stands for; undefined for a program, a link, and what cannot be opened. */
export function pinnedMapId(path: string): number | undefined {
  const attr = Buffer.alloc(12);
  const name = Buffer.from(`${path}\0`);
  writeU64(attr, 0, addressOf(name));
  const fd = trySyscall("bpf", bpf.BPF_OBJ_GET, attr, attr.length);
  if (fd < 0) return undefined;
  try {
    return readlinkSync(`/proc/self/fd/${fd}`) === BPF_MAP_LINK ? mapInfo(fd).id : undefined;
  } finally {
    closeSync(fd);
  }
}

/** What /proc says of a descriptor of a map. */
export const BPF_MAP_LINK = "anon_inode:bpf-map";
