// Maps of bpf(2), which programs in the kernel and processes share: keys with values. See kernel/bpf/syscall.c and map_in_map.c; format.md
// section 11, BPFMAP. The engine reads and fills them through descriptors of its own; a restored map is made without content in the
// root task, filled, and then frozen where the old one was.
//
// CRIU saves BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_ARRAY. The further types here have images of the same kind, which CRIU restores. What
// cannot be read without being changed (queues, rings) or leads to other objects (maps of maps, programs, sockets) is refused.

import { closeSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { assert, RepriseError } from "../../errors.ts";
import {
  FdTypes,
  type BpfmapFileEntry,
  type FileEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { readMountinfo } from "../../proc/mountinfo.ts";
import * as bpf from "../../sys/abi/bpf.ts";
import {
  F_DUPFD,
  F_SETFL,
  O_ACCMODE,
  O_APPEND,
  O_CLOEXEC,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
} from "../../sys/abi/fcntl.ts";
import {
  BPF_MAP_LINK,
  freezeMap,
  mapInfo,
  openMapFully,
  pinnedMapId,
  programsWithMap,
  readElements,
  writeElements,
  type BpfMapInfo,
  type Elements,
  type ElementSizes,
} from "../../sys/bpf.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FileKind, FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { readOwner, restoreOwner } from "./owner.ts";

export const bpfMapKind: FileKind = {
  name: "bpf map",
  type: FdTypes.BPFMAP,
  recognise: ({ target }) => target === BPF_MAP_LINK,
  write: writeMap,
  open: openMap,
};

/** Types whose content can be read and put back, and whether each processor has a value of its own. */
const SUPPORTED: ReadonlyMap<number, { readonly perCpu: boolean }> = new Map([
  [bpf.BPF_MAP_TYPE_HASH, { perCpu: false }],
  [bpf.BPF_MAP_TYPE_ARRAY, { perCpu: false }],
  [bpf.BPF_MAP_TYPE_PERCPU_HASH, { perCpu: true }],
  [bpf.BPF_MAP_TYPE_PERCPU_ARRAY, { perCpu: true }],
  [bpf.BPF_MAP_TYPE_LRU_HASH, { perCpu: false }],
  [bpf.BPF_MAP_TYPE_LRU_PERCPU_HASH, { perCpu: true }],
  [bpf.BPF_MAP_TYPE_LPM_TRIE, { perCpu: false }],
]);

/** Content of maps that a dump has seen, by the maps' ids; two descriptions may be of one map. */
const contents = new WeakMap<FilesDump, Map<number, Elements>>();

function writeMap(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  const info = mapInfo(fd);
  refuse(file, info);
  note(file, info, dump);
  const told = (name: string): string =>
    file.info.extra.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1) ?? "0";
  const map: BpfmapFileEntry = {
    id,
    flags: file.info.flags & ~O_CLOEXEC,
    pos: file.info.pos,
    fown: readOwner(file, dump),
    map_type: info.type,
    key_size: info.keySize,
    value_size: info.valueSize,
    map_id: info.id,
    max_entries: info.maxEntries,
    map_flags: info.flags,
    memlock: BigInt(told("memlock").trim()),
    frozen: told("frozen").trim() === "1",
    map_name: info.name,
    ifindex: info.ifindex,
    ...(info.extra === 0n ? {} : { map_extra: info.extra }),
  };
  return { type: FdTypes.BPFMAP, id, bpf: map };
}

function refuse({ task, fd, target }: OpenFile, info: BpfMapInfo): void {
  const name = info.name === "" ? `map ${info.id}` : `map ${info.id}, ${info.name}`;
  const refusal = (what: string, hint: string): RepriseError =>
    new RepriseError(
      "UNSUPPORTED",
      `cannot dump fd ${fd} of pid ${task.pid} (${target}): ${what} (${name})`,
      { pid: task.pid, fd, hint },
    );
  if (!SUPPORTED.has(info.type)) {
    throw refusal(
      `a bpf map of type ${info.type}, whose content cannot be saved`,
      "Hashes, arrays, LRU hashes (each also per processor) and LPM tries can be saved. Let the process close this one before the dump.",
    );
  }
  if (info.ifindex !== 0)
    throw refusal("a bpf map in a network device", "Let the process close it before the dump.");
}

/** Reads a map when it is seen first. */
function note(file: OpenFile, info: BpfMapInfo, dump: FilesDump): void {
  let known = contents.get(dump);
  if (known === undefined) {
    const fresh = new Map<number, Elements>();
    contents.set(dump, (known = fresh));
    dump.later(() => writeContents(fresh, dump));
  }
  if (known.has(info.id)) return;
  tellLosses(file, info);
  const fd = dump.borrow(file);
  const readable = (file.info.flags & O_ACCMODE) !== O_WRONLY;
  const reader = readable ? fd : openMapFully(fd);
  try {
    known.set(info.id, readElements(reader, { sizes: sizesOf(info), max: info.maxEntries }));
  } finally {
    if (!readable) closeSync(reader);
  }
}

/** A restored map is a new one: who else has the old one does not see it. */
function tellLosses({ task, fd }: OpenFile, info: BpfMapInfo): void {
  const what = `fd ${fd} of pid ${task.pid} (${[`bpf map ${info.id}`, info.name].join(" ").trim()})`;
  const programs = programsWithMap(info.id);
  if (programs.length > 0) {
    log.loss(
      `${what}: bpf program ${programs.join(", ")} uses it, too: the restored one is not theirs`,
    );
  }
  for (const name of pinsOf(task.pid, info.id))
    log.loss(`${what}: it is also ${name}: the restored one is not`);
  if (info.btfId !== 0) log.loss(`${what}: its BTF (the types of key and value) is not saved`);
}

/** The names of a map in the bpf file systems that a task sees. */
function pinsOf(pid: number, mapId: number): string[] {
  return readMountinfo(pid)
    .filter(({ fsType }) => fsType === "bpf")
    .flatMap(({ mountPoint }) => {
      const root = `/proc/${pid}/root${mountPoint}`;
      return readdirSync(root, { withFileTypes: true, recursive: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(entry.parentPath, entry.name))
        .filter((path) => pinnedMapId(path) === mapId)
        .map((path) => `${mountPoint}${path.slice(root.length)}`);
    });
}

function writeContents(maps: ReadonlyMap<number, Elements>, dump: FilesDump): void {
  const image = dump.images.open("bpfmap-data");
  for (const [map_id, { count, keys, values }] of maps) {
    image.add({ map_id, keys_bytes: keys.length, values_bytes: values.length, count });
    image.payload(keys);
    image.payload(values);
  }
  image.close();
}

/** Sizes in which system calls hand elements over: with values of all possible processors, each of whole words. */
function sizesOf(map: {
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
}): ElementSizes {
  const { keySize: key, valueSize } = map;
  if (SUPPORTED.get(map.type)?.perCpu !== true) return { key, value: valueSize };
  return { key, value: Math.ceil(valueSize / 8) * 8 * possibleProcessors() };
}

/** The number of processors that the kernel may come to have: "0-3". */
function possibleProcessors(): number {
  const text = readFileSync("/sys/devices/system/cpu/possible", "latin1").trim();
  return text.split(",").reduce((sum, range) => {
    const [first = 0, last = first] = range.split("-").map(Number);
    return sum + last - first + 1;
  }, 0);
}

/** A map while the opening program is built. */
interface Made {
  /** Its first descriptor, which may do what the map's flags let it. */
  readonly fd: number;
  readonly access: number;
  isGiven: boolean;
}

const maps = new WeakMap<FilesRestore, Map<number, Made>>();

function openMap(program: Program, { id, bpf: entry }: FileEntry, restore: FilesRestore): Argument {
  assert(entry !== undefined, `file ${id} is no bpf map`);
  let known = maps.get(restore);
  if (known === undefined) maps.set(restore, (known = new Map()));
  let map = known.get(entry.map_id);
  if (map === undefined) {
    map = makeMap(program, entry, restore);
    known.set(entry.map_id, map);
  }
  const fd = describe(program, map, entry);
  const settable = entry.flags & (O_APPEND | O_NONBLOCK);
  if (settable !== 0) program.call("fcntl", [fd, F_SETFL, settable]);
  restoreOwner(program, entry.fown, fd);
  return fd;
}

function makeMap(program: Program, entry: BpfmapFileEntry, restore: FilesRestore): Made {
  const label = `make ${nameOf(entry)}`;
  const attr = Buffer.alloc(bpf.MAP_CREATE_SIZE);
  const words = [
    entry.map_type,
    entry.key_size,
    entry.value_size,
    entry.max_entries,
    entry.map_flags,
  ];
  words.forEach((word, index) => attr.writeUInt32LE(word, index * 4));
  attr.write(entry.map_name.slice(0, bpf.BPF_NAME_SIZE - 1), 28, "latin1");
  attr.writeUInt32LE(entry.ifindex, 44);
  attr.writeBigUInt64LE(entry.map_extra ?? 0n, 64);
  // A kernel that does not know the last field takes it as long as it is not there or zero.
  const made = program.call("bpf", [bpf.BPF_MAP_CREATE, program.data(attr), attr.length], {
    label,
    hint: "Maps are made with CAP_BPF in the initial user namespace, within the limits of memory.",
  });
  const fd = restore.reserve();
  program.call("dup3", [made, fd, O_CLOEXEC], { label });
  program.call("close", [made], { label });
  restore.inEngine((copies) => fill(copies.reserved(fd), entry, restore));
  return { fd, access: accessOf(entry.map_flags), isGiven: false };
}

/** How a descriptor is opened that comes with these flags. */
function accessOf(flags: number): number {
  if ((flags & bpf.BPF_F_RDONLY) !== 0) return O_RDONLY;
  return (flags & bpf.BPF_F_WRONLY) === 0 ? O_RDWR : O_WRONLY;
}

/** The description of making the map is the first that may do as much; others are opened by the map's id. */
function describe(program: Program, map: Made, entry: BpfmapFileEntry): Argument {
  const label = `open ${nameOf(entry)} for file ${entry.id}`;
  const access = entry.flags & O_ACCMODE;
  if (access === map.access && !map.isGiven) {
    map.isGiven = true;
    return program.call("fcntl", [map.fd, F_DUPFD, 0], { label });
  }
  const byId = Buffer.alloc(12);
  if (access === O_RDONLY) byId.writeUInt32LE(bpf.BPF_F_RDONLY, 8);
  if (access === O_WRONLY) byId.writeUInt32LE(bpf.BPF_F_WRONLY, 8);
  // The id is the second word of what the kernel tells about the new map, and the first of the command: so the one is written over
  // the other, from a word before it.
  const words = program.data(Buffer.concat([Buffer.alloc(4), byId]));
  const ask = Buffer.alloc(16);
  ask.writeInt32LE(map.fd, 0);
  ask.writeUInt32LE(8, 4);
  const asking = program.structure(ask, { 8: words });
  program.call("bpf", [bpf.BPF_OBJ_GET_INFO_BY_FD, asking, ask.length], { label });
  const command = { ...words, offset: words.offset + 4 };
  return program.call("bpf", [bpf.BPF_MAP_GET_FD_BY_ID, command, byId.length], { label });
}

/** Gives a new map its content, through the engine's copy of its descriptor. */
function fill(copy: number, entry: BpfmapFileEntry, restore: FilesRestore): void {
  const fd = accessOf(entry.map_flags) === O_RDWR ? copy : openMapFully(copy);
  try {
    const data = savedElements(entry, restore);
    if (data !== undefined) writeElements(fd, data.elements, data.sizes);
    if (entry.frozen) freezeMap(fd);
  } finally {
    if (fd !== copy) closeSync(fd);
  }
}

function savedElements(
  entry: BpfmapFileEntry,
  { set }: FilesRestore,
): { readonly elements: Elements; readonly sizes: ElementSizes } | undefined {
  const data = set.reader
    .readWithPayload("bpfmap-data")
    .find(({ value }) => value.map_id === entry.map_id);
  const [keys, values] = data?.payload ?? [];
  if (data === undefined || data.value.count === 0 || keys === undefined || values === undefined)
    return undefined;
  const { count } = data.value;
  const sizes = sizesOf({
    type: entry.map_type,
    keySize: entry.key_size,
    valueSize: entry.value_size,
  });
  if (keys.length !== count * sizes.key) throw badData(entry, "its keys have another size");
  if (values.length !== count * sizes.value) {
    throw SUPPORTED.get(entry.map_type)?.perCpu === true
      ? new RepriseError(
          "UNSUPPORTED",
          `cannot restore ${nameOf(entry)}: it has values of another number of processors than this machine's ${possibleProcessors()}`,
          { hint: "Restore it on a machine with as many possible processors." },
        )
      : badData(entry, "its values have another size");
  }
  using image = set.reader.openRaw("bpfmap-data");
  // Copies: a view of the image may be part of a window that is read over.
  const elements = {
    count,
    keys: Buffer.from(image.bytes(keys.offset, keys.length)),
    values: Buffer.from(image.bytes(values.offset, values.length)),
  };
  return { elements, sizes };
}

function badData(entry: BpfmapFileEntry, what: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot restore ${nameOf(entry)}: ${what}`);
}

function nameOf({ map_id, map_name }: BpfmapFileEntry): string {
  return map_name === "" ? `bpf map ${map_id}` : `bpf map ${map_id} (${map_name})`;
}
