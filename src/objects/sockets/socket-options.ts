// Options that sockets of every family have (SOL_SOCKET): read from the engine's copy of the socket, set again in the
// opening program. See socket(7); format.md section 11, sk_opts_entry.

import { RepriseError } from "../../errors.ts";
import type { SkOptsEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import * as so from "../../sys/abi/socket.ts";
import { EACCES, EINVAL, ENOPROTOOPT, EOPNOTSUPP, ERANGE, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { getOption, getNumber } from "../../sys/socket.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { OpenFile } from "../files/file-kind.ts";
import { POLLERR } from "../../sys/abi/poll.ts";
import { alikeOptions } from "./socket-answers.ts";
import { eventsOf } from "./told.ts";

/** struct sock_filter. */
const INSTRUCTION_SIZE = 8;

/**
 * Options of a socket; `fd` is the engine's copy of `file`.
 * @throws RepriseError UNSUPPORTED for an eBPF filter, SYSCALL
 */
export function collectOptions(
  file: OpenFile,
  fd: number,
  options: { readonly family: number },
): SkOptsEntry {
  // Of unix sockets an error comes back (unix-queue.ts).
  if (options.family !== so.AF_UNIX) tellError(file, fd);
  return alikeOptions(fd, () => readOptions(file, fd, options));
}

/** What is asked for here stands in COLLECTED. */
function readOptions(
  file: OpenFile,
  fd: number,
  options: { readonly family: number },
): SkOptsEntry {
  const number = (name: number): number => getNumber(fd, so.SOL_SOCKET, name);
  const flag = (name: number): boolean => number(name) !== 0;
  const send = timeout(fd, so.SO_SNDTIMEO);
  const receive = timeout(fd, so.SO_RCVTIMEO);
  const passes = options.family === so.AF_UNIX || options.family === so.AF_NETLINK;
  const mark = optional(fd, so.SO_MARK) ?? 0;
  const device = boundDevice(fd);
  const linger = lingerTime(fd);
  const bufLock = optional(fd, so.SO_BUF_LOCK);
  return {
    so_sndbuf: number(so.SO_SNDBUF),
    so_rcvbuf: number(so.SO_RCVBUF),
    so_snd_tmo_sec: send.seconds,
    so_snd_tmo_usec: send.microseconds,
    so_rcv_tmo_sec: receive.seconds,
    so_rcv_tmo_usec: receive.microseconds,
    reuseaddr: flag(so.SO_REUSEADDR),
    so_priority: number(so.SO_PRIORITY),
    so_rcvlowat: number(so.SO_RCVLOWAT),
    ...(mark === 0 ? {} : { so_mark: mark >>> 0 }),
    ...(passes ? { so_passcred: flag(so.SO_PASSCRED), so_passsec: flag(so.SO_PASSSEC) } : {}),
    so_dontroute: flag(so.SO_DONTROUTE),
    so_no_check: flag(so.SO_NO_CHECK),
    ...(device === "" ? {} : { so_bound_dev: device }),
    so_filter: filter(file, fd),
    so_reuseport: (optional(fd, so.SO_REUSEPORT) ?? 0) !== 0,
    so_broadcast: flag(so.SO_BROADCAST),
    so_keepalive: flag(so.SO_KEEPALIVE),
    so_oobinline: number(so.SO_OOBINLINE),
    ...(linger === undefined ? {} : { so_linger: linger }),
    ...(bufLock === undefined ? {} : { so_buf_lock: bufLock }),
  };
}

/** An error that waits to be told to the process (SO_ERROR), or a message about one (MSG_ERRQUEUE). Reading it would take it. */
function tellError({ task, fd, target }: OpenFile, copy: number): void {
  if ((eventsOf(copy) & POLLERR) === 0) return;
  log.loss(`fd ${fd} of pid ${task.pid} (${target}): an error that it has not read yet is lost`);
}

/** Options of a socket that nobody has looked at: of the outer end of a connection that leads out of the tree. */
export const NO_OPTIONS: SkOptsEntry = {
  so_sndbuf: 0,
  so_rcvbuf: 0,
  so_snd_tmo_sec: 0n,
  so_snd_tmo_usec: 0n,
  so_rcv_tmo_sec: 0n,
  so_rcv_tmo_usec: 0n,
  so_filter: [],
};

/** A socket of the opening program. */
export interface SocketInProgram {
  readonly fd: Argument;
  /** For labels: "unix socket 4711 (file 12)". */
  readonly what: string;
  /** Not all options are known to its protocol: what fails is left out. @default false */
  readonly lenient?: boolean;
  /** Its buffers have the sizes that are saved. @default false */
  readonly hasBuffers?: boolean;
}

/** Sizes of the buffers of a fresh socket. */
interface Buffers {
  readonly send: number;
  readonly receive: number;
}

const usualBuffers = new Map<string, Buffers | undefined>();

/**
 * Whether the buffers of a socket that nobody has given others are those of a fresh one. They come from net.core.wmem_default and
 * rmem_default, which all network namespaces have in common; not so for TCP.
 */
export function hasUsualBuffers(
  { so_buf_lock, so_sndbuf, so_rcvbuf }: SkOptsEntry,
  {
    family,
    type,
    proto,
  }: { readonly family: number; readonly type: number; readonly proto: number },
): boolean {
  if (so_buf_lock !== 0) return false;
  const key = `${family}:${type}:${proto}`;
  if (!usualBuffers.has(key)) usualBuffers.set(key, freshBuffers(family, type, proto));
  const usual = usualBuffers.get(key);
  return usual !== undefined && usual.send === so_sndbuf && usual.receive === so_rcvbuf;
}

function freshBuffers(family: number, type: number, proto: number): Buffers | undefined {
  const fd = trySyscall("socket", family, type | so.SOCK_CLOEXEC, proto);
  if (fd < 0) return undefined;
  const [send, receive] = [so.SO_SNDBUF, so.SO_RCVBUF].map((name) =>
    getNumber(fd, so.SOL_SOCKET, name),
  );
  syscall("close", fd);
  return send === undefined || receive === undefined ? undefined : { send, receive };
}

/**
 * Adds the calls that set everything but SO_REUSEADDR and SO_REUSEPORT, which some families need before bind. For a socket
 * whose queues are filled already: the buffers get their own sizes here.
 */
export function restoreOptions(program: Program, opts: SkOptsEntry, socket: SocketInProgram): void {
  const set = (name: number, value: number, option: string): void =>
    setOption(program, socket, { name, value, option });
  const on = (name: number, wanted: boolean | number | undefined, option: string): void => {
    if (wanted === true || (typeof wanted === "number" && wanted !== 0)) set(name, 1, option);
  };
  if (socket.hasBuffers !== true) restoreBuffers(program, opts, socket);
  if ((opts.so_priority ?? 0) !== 0) set(so.SO_PRIORITY, opts.so_priority ?? 0, "SO_PRIORITY");
  if ((opts.so_rcvlowat ?? 1) !== 1) set(so.SO_RCVLOWAT, opts.so_rcvlowat ?? 1, "SO_RCVLOWAT");
  if ((opts.so_mark ?? 0) !== 0) set(so.SO_MARK, opts.so_mark ?? 0, "SO_MARK");
  on(so.SO_PASSCRED, opts.so_passcred, "SO_PASSCRED");
  on(so.SO_PASSSEC, opts.so_passsec, "SO_PASSSEC");
  on(so.SO_DONTROUTE, opts.so_dontroute, "SO_DONTROUTE");
  on(so.SO_NO_CHECK, opts.so_no_check, "SO_NO_CHECK");
  on(so.SO_BROADCAST, opts.so_broadcast, "SO_BROADCAST");
  on(so.SO_OOBINLINE, opts.so_oobinline, "SO_OOBINLINE");
  on(so.SO_KEEPALIVE, opts.so_keepalive, "SO_KEEPALIVE");
  if (opts.so_linger !== undefined) {
    const value = Buffer.concat([int(1), int(opts.so_linger)]);
    setOption(program, socket, { name: so.SO_LINGER, value, option: "SO_LINGER" });
  }
  restoreTimeouts(program, opts, socket);
  restoreDevice(program, opts, socket);
  restoreFilter(program, opts, socket);
}

/** Adds the calls that set the sizes of the buffers. */
export function restoreBuffers(program: Program, opts: SkOptsEntry, socket: SocketInProgram): void {
  // Setting a size locks it; the lock itself comes right after.
  setBuffer(program, socket, { direction: "SND", size: opts.so_sndbuf >>> 1 });
  setBuffer(program, socket, { direction: "RCV", size: opts.so_rcvbuf >>> 1 });
  if (opts.so_buf_lock !== undefined) {
    const value = opts.so_buf_lock;
    setOption(program, socket, { name: so.SO_BUF_LOCK, value, option: "SO_BUF_LOCK" });
  }
}

/**
 * The kernel doubles what it is given. Beyond the limit (net.core.wmem_max) only CAP_NET_ADMIN of the initial user namespace
 * gets; a tree in another one cannot have got beyond it either.
 */
function setBuffer(
  program: Program,
  socket: SocketInProgram,
  { direction, size }: { readonly direction: "SND" | "RCV"; readonly size: number },
): void {
  const [name, force] =
    direction === "SND" ? [so.SO_SNDBUF, so.SO_SNDBUFFORCE] : [so.SO_RCVBUF, so.SO_RCVBUFFORCE];
  setOption(program, socket, { name, value: size, option: `SO_${direction}BUF` });
  const args = [socket.fd, so.SOL_SOCKET, force, program.word(size), 4];
  program.call("setsockopt", args, { mayFail: true });
}

/** Adds the calls that set SO_REUSEADDR and SO_REUSEPORT as they were. A fresh socket has neither. */
export function restoreReuse(program: Program, opts: SkOptsEntry, socket: SocketInProgram): void {
  const value = 1;
  if (opts.reuseaddr === true)
    setOption(program, socket, { name: so.SO_REUSEADDR, value, option: "SO_REUSEADDR" });
  if (opts.so_reuseport === true)
    setOption(program, socket, { name: so.SO_REUSEPORT, value, option: "SO_REUSEPORT" });
}

/** Adds the call that lets a socket send as much as it may: what is put into a queue must not wait. */
export function liftSendLimit(program: Program, socket: SocketInProgram): void {
  setBuffer(program, socket, { direction: "SND", size: MAX_BUFFER });
}

/** The kernel doubles it, into an int. */
const MAX_BUFFER = 0x3fff_ffff;

/** One option of SOL_SOCKET, or of another level. */
export interface SocketOption {
  /** @default SOL_SOCKET */
  readonly level?: number;
  readonly name: number;
  /** An int, or the bytes. */
  readonly value: number | Uint8Array;
  /** For the label. */
  readonly option: string;
}

/** Adds one setsockopt. */
export function setOption(
  program: Program,
  { fd, what, lenient = false }: SocketInProgram,
  { level = so.SOL_SOCKET, name, value, option }: SocketOption,
): void {
  const args =
    typeof value === "number"
      ? [fd, level, name, program.word(value), 4]
      : [fd, level, name, program.data(value), value.length];
  program.call("setsockopt", args, { label: () => `set ${option} of ${what}`, mayFail: lenient });
}

function int(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value | 0);
  return bytes;
}

/** An int option that this kernel or family may not have. */
function optional(fd: number, name: number): number | undefined {
  const value = getOption(fd, { level: so.SOL_SOCKET, name, size: 4 });
  if (typeof value !== "number") return value.readInt32LE(0);
  if (value === -ENOPROTOOPT || value === -EOPNOTSUPP || value === -EINVAL) return undefined;
  return getNumber(fd, so.SOL_SOCKET, name);
}

interface Timeout {
  readonly seconds: bigint;
  readonly microseconds: bigint;
}

function timeout(fd: number, name: number): Timeout {
  const value = getOption(fd, { level: so.SOL_SOCKET, name, size: 16 });
  if (typeof value === "number") return { seconds: 0n, microseconds: 0n };
  return { seconds: value.readBigUInt64LE(0), microseconds: value.readBigUInt64LE(8) };
}

function restoreTimeouts(program: Program, opts: SkOptsEntry, socket: SocketInProgram): void {
  const set = (name: number, option: string, seconds: bigint, microseconds: bigint): void => {
    if (seconds === 0n && microseconds === 0n) return;
    const value = Buffer.alloc(16);
    value.writeBigUInt64LE(seconds, 0);
    value.writeBigUInt64LE(microseconds, 8);
    setOption(program, socket, { name, value, option });
  };
  set(so.SO_SNDTIMEO, "SO_SNDTIMEO", opts.so_snd_tmo_sec, opts.so_snd_tmo_usec);
  set(so.SO_RCVTIMEO, "SO_RCVTIMEO", opts.so_rcv_tmo_sec, opts.so_rcv_tmo_usec);
}

/** Seconds of SO_LINGER; undefined when it is off. */
function lingerTime(fd: number): number | undefined {
  const value = getOption(fd, { level: so.SOL_SOCKET, name: so.SO_LINGER, size: 8 });
  if (typeof value === "number" || value.readInt32LE(0) === 0) return undefined;
  return value.readInt32LE(4);
}

/** The device that a socket is bound to; empty for none. */
function boundDevice(fd: number): string {
  const value = getOption(fd, {
    level: so.SOL_SOCKET,
    name: so.SO_BINDTODEVICE,
    size: so.IFNAMSIZ,
  });
  if (typeof value === "number") return "";
  return value.toString("latin1").replace(/\0.*$/s, "");
}

function restoreDevice(program: Program, opts: SkOptsEntry, socket: SocketInProgram): void {
  if (opts.so_bound_dev === undefined || opts.so_bound_dev === "") return;
  setOption(program, socket, {
    name: so.SO_BINDTODEVICE,
    value: Buffer.from(`${opts.so_bound_dev}\0`, "latin1"),
    option: `SO_BINDTODEVICE (${opts.so_bound_dev})`,
  });
}

/** The classic BPF program of a socket, an instruction a word: code, jt, jf, k from the top. */
function filter({ task, fd, target }: OpenFile, copy: number): bigint[] {
  const length = Buffer.alloc(4);
  const args = [copy, so.SOL_SOCKET, so.SO_GET_FILTER] as const;
  let result = trySyscall("getsockopt", ...args, 0, length);
  const count = length.readUInt32LE(0);
  if (result === 0 && count === 0) return [];
  // Here the length counts instructions, not bytes.
  const program = Buffer.alloc(Math.max(count, 1) * INSTRUCTION_SIZE);
  if (result === 0) result = trySyscall("getsockopt", ...args, program, length);
  if (result === -EACCES || result === -ERANGE) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump fd ${fd} of pid ${task.pid} (${target}): its filter is an eBPF program`,
      { pid: task.pid, fd, hint: "Only classic BPF filters of sockets can be saved." },
    );
  }
  if (result === -ENOPROTOOPT || result === -EOPNOTSUPP) return [];
  if (result < 0) {
    throw new RepriseError(
      "SYSCALL",
      `cannot read the filter of fd ${fd} of pid ${task.pid} (${target}): getsockopt: ${errnoName(-result)}`,
      { pid: task.pid, fd, syscall: "getsockopt", errno: errnoName(-result) },
    );
  }
  return Array.from({ length: count }, (_, index) => {
    const at = index * INSTRUCTION_SIZE;
    return (
      (BigInt(program.readUInt16LE(at)) << 48n) |
      (BigInt(program.readUInt8(at + 2)) << 40n) |
      (BigInt(program.readUInt8(at + 3)) << 32n) |
      BigInt(program.readUInt32LE(at + 4))
    );
  });
}

function restoreFilter(program: Program, opts: SkOptsEntry, { fd, what }: SocketInProgram): void {
  const { so_filter: words } = opts;
  if (words.length === 0) return;
  const code = Buffer.alloc(words.length * INSTRUCTION_SIZE);
  words.forEach((word, index) => {
    const at = index * INSTRUCTION_SIZE;
    code.writeUInt16LE(Number((word >> 48n) & 0xffffn), at);
    code.writeUInt8(Number((word >> 40n) & 0xffn), at + 2);
    code.writeUInt8(Number((word >> 32n) & 0xffn), at + 3);
    code.writeUInt32LE(Number(word & 0xffff_ffffn), at + 4);
  });
  // struct sock_fprog: how many instructions, where they are.
  const header = Buffer.alloc(16);
  header.writeUInt16LE(words.length, 0);
  const place = program.structure(header, { 8: program.data(code) });
  program.call("setsockopt", [fd, so.SOL_SOCKET, so.SO_ATTACH_FILTER, place, header.length], {
    label: `attach the filter of ${what}`,
  });
}
