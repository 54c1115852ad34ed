// What the kernel keeps of an io_uring ring (struct io_ring_ctx, include/linux/io_uring_types.h). fdinfo shows a part of it, and no count
// of the requests under way, so it is read from the kernel's memory (sys/kernel-memory.ts). A ring at rest is one all of whose requests
// lie in the cache of free ones: nr_req_allocated of them, on submit_state.free_list. What is read here must not change meanwhile, which
// is looked at again at the end.

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { KernelMemory } from "../../sys/kernel-memory.ts";
import { KernelObjects } from "../../sys/kernel-objects.ts";
import { KernelTypes } from "../../sys/kernel-types.ts";
import { PAGE_SIZE } from "../../sys/abi/mman.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { MemoryRange } from "../../sys/memory.ts";
import { foreignWork, pendingRequests, preparePending, type PendingRequest } from "./pending.ts";
import { IORING_SETUP_NO_MMAP, PARAMS_SIZE } from "../../sys/abi/io-uring.ts";
import { CLOCK_MONOTONIC_COARSE } from "../../sys/abi/event-files.ts";

/** A ring as the kernel has it. */
export interface RingContext {
  /** IORING_SETUP_… */
  readonly flags: number;
  readonly sqEntries: number;
  readonly cqEntries: number;
  /** How many entries the kernel has taken, and how many completions it has made, modulo 2^32. */
  readonly sqHead: number;
  readonly cqTail: number;
  /** Requests that are under way. */
  readonly inFlight: number;
  /** Those that wait and can be begun anew, or why one cannot. */
  readonly pending: readonly PendingRequest[] | string;
  /** Some request had IOSQE_CQE_SKIP_SUCCESS: IOSQE_IO_DRAIN is refused from then on. */
  readonly drainDisabled: boolean;
  /** What the ring has besides its two queues, for people. */
  readonly extras: readonly string[];
  /** Undefined where the kernel made it. */
  readonly memory: RingMemory | undefined;
  /** The one thread that may use it (IORING_SETUP_SINGLE_ISSUER). */
  readonly submitter: KernelThread | undefined;
  readonly poller: Poller | undefined;
  readonly eventfd: { readonly id: number; readonly isAsync: boolean } | undefined;
  /** Addresses of registered files in the kernel; 0 for places without one. */
  readonly files: readonly bigint[];
  /** Registered memory of the process; empty for places without. */
  readonly buffers: readonly MemoryRange[];
  /** What is told when a registered file or buffer is no longer used; 0 for nothing. */
  readonly fileTags: readonly bigint[];
  readonly bufferTags: readonly bigint[];
  /** The places for files that the kernel chooses from, where it was told. */
  readonly fileRange: { readonly start: number; readonly length: number } | undefined;
  /** Of its timeouts. */
  readonly clock: number;
  /** The most threads of the kernel that work for it (bounded, unbounded), where that was said. */
  readonly workerLimits: readonly number[];
  /** Threads that have it among their registered rings, and at which place. */
  readonly registrations: readonly (KernelThread & { readonly place: number })[];
  /** The memory of both queues, and of the submission's entries. */
  readonly rings: Buffer;
  readonly entries: Buffer;
}

/** A thread by the kernel's own numbers. */
export interface KernelThread {
  readonly tid: number;
  readonly pid: number;
}

/** The kernel's thread that takes a ring's requests (IORING_SETUP_SQPOLL). */
export interface Poller {
  /** The process that it belongs to. */
  readonly pid: number;
  /** Milliseconds until it sleeps. */
  readonly idle: number;
  /** The processor that it stays on (IORING_SETUP_SQ_AFF), or was on last. */
  readonly cpu: number;
  /** It has the credentials that the process has. */
  readonly isOwners: boolean;
}

/** Memory that the process gave to the ring (IORING_SETUP_NO_MMAP). */
export interface RingMemory {
  /** Of the memory file; undefined where the memory is of another kind. */
  readonly inode: bigint | undefined;
  /** "memfd:…" */
  readonly name: string;
}

/** More free requests than any ring has. */
const MANY = 0x1_0000;

/** Whether the numbers of threads that the kernel has for itself are those that the engine sees. */
export function seesKernelNumbers(memory: KernelMemory): boolean {
  const { offset } = KernelTypes.ofKernel().field("task_struct.tgid");
  return memory.read(0n, offset + 4).readUInt32LE(offset) === process.pid;
}

/** Addresses in the kernel of files that the engine has open, by their descriptors. */
export function fileAddresses(fds: readonly number[], memory: KernelMemory): bigint[] {
  return memory.files(fds, KernelTypes.ofKernel());
}

/** How many there are that have a file at an address in the kernel open. */
export function holdersOf(file: bigint, memory: KernelMemory): number {
  // file_ref_t counts from zero on.
  return Number(new KernelObjects(memory).word(file, "file.f_ref.refcnt.counter")) + 1;
}

/**
 * Looks at the ring behind a descriptor of the engine's.
 *
 * @throws RepriseError KERNEL_FEATURE, SYSCALL
 * @returns undefined where it was at work meanwhile
 */
export function lookAtRing(fd: number, memory: KernelMemory): RingContext | undefined {
  const types = KernelTypes.ofKernel();
  const file = memory.file(fd, types);
  const ring = new Context(memory, types, memory.fileData(fd, types));
  const free = ring.countFree();
  const context = { ...ring.describe(free, file), pending: pendingRequests(ring.address, memory) };
  return free === new Context(memory, types, ring.address).countFree() && ring.isUnchanged()
    ? context
    : undefined;
}

/**
 * Looks at a ring of the engine's own, so that no name of the kernel's is looked for while a tree stands still. Where that cannot be,
 * the rings of the tree will say why.
 */
export function prepareToLook(): void {
  const params = Buffer.alloc(PARAMS_SIZE);
  const fd = trySyscall("io_uring_setup", 1, params);
  if (fd < 0) return;
  try {
    using memory = new KernelMemory();
    lookAtRing(fd, memory);
    preparePending(KernelTypes.ofKernel());
  } catch (error) {
    if (!(error instanceof RepriseError)) throw error;
  } finally {
    closeSync(fd);
  }
}

/** Where the memory is that a process gave to a ring. */
export function ringMemoryOf(fd: number, memory: KernelMemory): RingMemory | undefined {
  const types = KernelTypes.ofKernel();
  return new Context(memory, types, memory.fileData(fd, types)).memory();
}

class Context {
  readonly address: bigint;
  readonly #memory: KernelMemory;
  readonly #types: KernelTypes;
  readonly #bytes: Buffer;

  constructor(memory: KernelMemory, types: KernelTypes, address: bigint) {
    this.#memory = memory;
    this.#types = types;
    this.address = address;
    this.#bytes = memory.read(address, types.size("io_ring_ctx"));
  }

  describe(free: number, file: bigint): Omit<RingContext, "pending"> {
    return {
      flags: this.#number("flags"),
      sqEntries: this.#number("sq_entries"),
      cqEntries: this.#number("cq_entries"),
      sqHead: this.#number("cached_sq_head"),
      cqTail: this.#number("cached_cq_tail"),
      inFlight: this.#number("nr_req_allocated") - free + foreignWork(this.address, this.#memory),
      drainDisabled: this.#isSet("drain_disabled"),
      extras: this.#extras(),
      memory: this.memory(),
      submitter: this.#threadOf(this.#word("submitter_task")),
      poller: this.#poller(),
      eventfd: this.#eventfd(),
      files: this.#resources("file_table.data", (node) => this.#file(node)),
      buffers: this.#resources("buf_table", (node) => this.#buffer(node)),
      fileTags: this.#resources("file_table.data", (node) => this.#tag(node)),
      bufferTags: this.#resources("buf_table", (node) => this.#tag(node)),
      fileRange: this.#fileRange(),
      clock: this.#number("clockid"),
      workerLimits: this.#workerLimits(),
      registrations: this.#registrations(file),
      rings: this.#region("ring_region"),
      entries: this.#region("sq_region"),
    };
  }

  /** Whether nothing was submitted or completed since. */
  isUnchanged(): boolean {
    const now = new Context(this.#memory, this.#types, this.address);
    const names = ["cached_sq_head", "cached_cq_tail", "nr_req_allocated", "flags"];
    return names.every((name) => now.#number(name) === this.#number(name));
  }

  /** The length of the list of free requests. */
  countFree(): number {
    let count = 0;
    const linkAt = BigInt(this.#types.field("io_wq_work_node.next").offset);
    let node = this.#word("submit_state.free_list.next");
    for (; node !== 0n && count < MANY; count++) node = this.#memory.word(node + linkAt);
    return count;
  }

  #extras(): string[] {
    const has: readonly (readonly [boolean, string])[] = [
      [this.#hasKernelBuffers(), "registered buffers of the kernel's"],
      [this.#word("io_bl_xa.xa_head") !== 0n, "provided buffers"],
      [this.#word("personalities.xa_head") !== 0n, "registered personalities"],
      [this.#byte("restrictions.registered") !== 0, "restrictions"],
      [this.#word("zcrx_ctxs.xa_head") !== 0n, "zero-copy reception"],
      [this.#word("param_region.pages") !== 0n, "a region for arguments"],
      [this.#isSet("compat"), "a 32-bit owner"],
      [this.#isListFull("cq_overflow_list"), "completions for which the queue had no room"],
      [this.#word("check_cq") !== 0n, "completions that were lost"],
    ];
    return has.filter(([isThere]) => isThere).map(([, what]) => what);
  }

  #threadOf(task: bigint): KernelThread | undefined {
    return task === 0n
      ? undefined
      : {
          tid: this.#numberAt(task, "task_struct.pid"),
          pid: this.#numberAt(task, "task_struct.tgid"),
        };
  }

  #poller(): Poller | undefined {
    const data = this.#word("sq_data");
    if (data === 0n) return undefined;
    const thread = this.#wordAt(data, "io_sq_data.thread");
    const leader = thread === 0n ? 0n : this.#wordAt(thread, "task_struct.group_leader");
    const owner = this.#threadOf(leader);
    return {
      pid: owner?.pid ?? 0,
      idle: Math.floor((this.#number("sq_thread_idle") * tickNs()) / 1e6),
      cpu: this.#numberAt(data, "io_sq_data.sq_cpu"),
      isOwners:
        leader !== 0n &&
        this.#haveSameRights(this.#wordAt(leader, "task_struct.cred"), this.#word("sq_creds")),
    };
  }

  /** Credentials are copied whenever something of them is set, also to what it was. */
  #haveSameRights(one: bigint, other: bigint): boolean {
    const first = this.#types.field("cred.uid").offset;
    const end = this.#types.field("cred.cap_ambient").offset + 8;
    const rights = (cred: bigint): Buffer => this.#memory.read(cred + BigInt(first), end - first);
    return (
      rights(one).equals(rights(other)) &&
      ["cred.user_ns", "cred.group_info"].every(
        (path) => this.#wordAt(one, path) === this.#wordAt(other, path),
      )
    );
  }

  #eventfd(): RingContext["eventfd"] {
    const registered = this.#word("io_ev_fd");
    if (registered === 0n) return undefined;
    const context = this.#wordAt(registered, "io_ev_fd.cq_ev_fd");
    return {
      id: this.#numberAt(context, "eventfd_ctx.id"),
      isAsync: this.#numberAt(registered, "io_ev_fd.eventfd_async") !== 0,
    };
  }

  #resources<T>(table: string, read: (node: bigint) => T): T[] {
    const count = this.#number(`${table}.nr`);
    const nodes =
      count === 0 ? Buffer.alloc(0) : this.#memory.read(this.#word(`${table}.nodes`), count * 8);
    return Array.from({ length: count }, (_, index) => read(nodes.readBigUInt64LE(index * 8)));
  }

  #file(node: bigint): bigint {
    // The lowest bits tell what kind of file it is (FFS_MASK).
    return node === 0n ? 0n : this.#wordAt(node, "io_rsrc_node.file_ptr") & ~7n;
  }

  #buffer(node: bigint): MemoryRange {
    if (node === 0n) return { address: 0, length: 0 };
    const buffer = this.#wordAt(node, "io_rsrc_node.buf");
    return {
      address: Number(this.#wordAt(buffer, "io_mapped_ubuf.ubuf")),
      length: this.#numberAt(buffer, "io_mapped_ubuf.len"),
    };
  }

  #tag(node: bigint): bigint {
    return node === 0n ? 0n : this.#wordAt(node, "io_rsrc_node.tag");
  }

  #hasKernelBuffers(): boolean {
    const isKernels = (node: bigint): boolean =>
      node !== 0n &&
      this.#memory
        .read(this.#wordAt(node, "io_rsrc_node.buf"), this.#types.size("io_mapped_ubuf"))
        .readUInt8(this.#types.field("io_mapped_ubuf.is_kbuf").offset) !== 0;
    return this.#resources("buf_table", isKernels).includes(true);
  }

  #wordAt(base: bigint, path: string): bigint {
    return this.#memory.word(base + BigInt(this.#types.field(path).offset));
  }

  #numberAt(base: bigint, path: string): number {
    return this.#memory.read(base + BigInt(this.#types.field(path).offset), 4).readUInt32LE();
  }

  /** IORING_REGISTER_FILE_ALLOC_RANGE; without it that is all places. */
  #fileRange(): RingContext["fileRange"] {
    const [start, end] = [this.#number("file_alloc_start"), this.#number("file_alloc_end")];
    const isWhole = start === 0 && end === this.#number("file_table.data.nr");
    return isWhole ? undefined : { start, length: end - start };
  }

  #workerLimits(): number[] {
    if (!this.#isSet("iowq_limits_set")) return [];
    const { offset } = this.#types.field("io_ring_ctx.iowq_limits");
    return [this.#bytes.readUInt32LE(offset), this.#bytes.readUInt32LE(offset + 4)];
  }

  #isListFull(name: string): boolean {
    const { offset } = this.#types.field(`io_ring_ctx.${name}`);
    return this.#word(`${name}.next`) !== this.address + BigInt(offset);
  }

  /** Of all tasks that have used the ring (io_uring_register(2), IORING_REGISTER_RING_FDS), by the address of its file. */
  #registrations(file: bigint): RingContext["registrations"] {
    const types = this.#types;
    const head = this.address + BigInt(types.field("io_ring_ctx.tctx_list").offset);
    const offset = (path: string): bigint => BigInt(types.field(path).offset);
    const listAt = offset("io_tctx_node.ctx_node");
    const found: (KernelThread & { readonly place: number })[] = [];
    for (let at = this.#word("tctx_list.next"), nodes = 0; at !== head && nodes < MANY; nodes++) {
      const task = this.#memory.word(at - listAt + offset("io_tctx_node.task"));
      const own = this.#memory.word(task + offset("task_struct.io_uring"));
      const thread = this.#threadOf(task);
      if (own !== 0n && thread !== undefined) {
        const rings = own + offset("io_uring_task.registered_rings");
        const bytes = this.#memory.read(rings, RINGS_OF_TASK * 8);
        for (let place = 0; place < RINGS_OF_TASK; place++)
          if (bytes.readBigUInt64LE(place * 8) === file) found.push({ ...thread, place });
      }
      at = this.#memory.word(at + offset("list_head.next"));
    }
    return found;
  }

  #region(name: string): Buffer {
    return this.#memory.read(
      this.#word(`${name}.ptr`),
      this.#number(`${name}.nr_pages`) * PAGE_SIZE,
    );
  }

  memory(): RingMemory | undefined {
    if ((this.#number("flags") & IORING_SETUP_NO_MMAP) === 0) return undefined;
    let page = this.#memory.word(this.#word("ring_region.pages"));
    const head = this.#wordAt(page, "page.compound_head");
    if ((head & 1n) !== 0n) page = head - 1n;
    const mapping = this.#wordAt(page, "page.mapping");
    // The lowest bits tell what is not the memory of a file (PAGE_MAPPING_FLAGS).
    if (mapping === 0n || (mapping & 3n) !== 0n) return { inode: undefined, name: "" };
    const inode = this.#wordAt(mapping, "address_space.host");
    const alias = this.#wordAt(inode, "inode.i_dentry.first");
    if (alias === 0n) return { inode: undefined, name: "" };
    const dentry = alias - BigInt(this.#types.field("dentry.d_u.d_alias").offset);
    const name = this.#memory.read(this.#wordAt(dentry, "dentry.d_name.name"), NAME_SIZE);
    return {
      inode: this.#wordAt(inode, "inode.i_ino"),
      name: name.toString("latin1").replace(/\0.*$/s, ""),
    };
  }

  #number(name: string): number {
    return this.#bytes.readUInt32LE(this.#types.field(`io_ring_ctx.${name}`).offset);
  }

  #byte(name: string): number {
    return this.#bytes.readUInt8(this.#types.field(`io_ring_ctx.${name}`).offset);
  }

  #word(name: string): bigint {
    return this.#bytes.readBigUInt64LE(this.#types.field(`io_ring_ctx.${name}`).offset);
  }

  #isSet(name: string): boolean {
    const { offset, bit } = this.#types.field(`io_ring_ctx.${name}`);
    const byte = this.#bytes.readUInt8(offset);
    return bit === undefined ? byte !== 0 : (byte & (1 << bit)) !== 0;
  }
}

/** Nanoseconds of the kernel's tick, in which it keeps times. */
function tickNs(): number {
  const resolution = Buffer.alloc(16);
  syscall("clock_getres", CLOCK_MONOTONIC_COARSE, resolution);
  return Number(resolution.readBigInt64LE(8));
}

/** IO_RINGFD_REG_MAX */
const RINGS_OF_TASK = 16;
/** As much of a name as is looked at; names are in larger blocks. */
const NAME_SIZE = 32;
