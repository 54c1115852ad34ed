// What lies unread in unix sockets, with the open files in flight in it: looked at without taking it out (MSG_PEEK with a
// moving SO_PEEK_OFF), and put back by whoever may send. See unix(7), net/unix/af_unix.c; format.md section 4, sk-queues.
//
// A peek takes a stream's data up to the end of a message that carries descriptors, with what lies before that message. An
// empty datagram shows once to a moving peek: the kernel marks it, and later peeks pass over it.

import { RepriseError } from "../../errors.ts";
import type { ImageEntry } from "../../images/image-file.ts";
import type { SkPacketEntry } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { FIONREAD, O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { POLLERR, POLLIN, POLLPRI } from "../../sys/abi/poll.ts";
import * as so from "../../sys/abi/socket.ts";
import { EAGAIN, EFAULT, errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { pollNow } from "../../sys/poll.ts";
import {
  encodeControl,
  getNumber,
  getOption,
  receiveMessage,
  receiveWholeMessages,
  setNumber,
  type ControlMessage,
  type ReceivedMessage,
} from "../../sys/socket.ts";
import type { Argument, Pointer, Program } from "../../tracee/program.ts";
import type { FilesRestore, OpenFile } from "../files/file-kind.ts";
import { takeCarried } from "../files/carrier.ts";
import { isLivePidfd } from "../files/pidfd.ts";
import { eventsOf } from "./told.ts";
import { liftSendLimit } from "./socket-options.ts";

/** One message of a queue, or a stretch of a stream. */
export interface Packet {
  readonly data: Buffer;
  /** The engine's descriptors of open files that came with it; the caller closes them. */
  readonly rights: readonly number[];
  /** The name of who sent a datagram; empty when it has none. */
  readonly sender: Buffer;
}

/** Bytes at first: a longer message is read again; of a stream the most in one packet, since a restore needs memory for one. */
const FIRST_READ = 256 * 1024;

/** Whether a socket has an error (ECONNRESET) that its owner has not been told yet. Looking for data in vain would take it. */
export function hasError(fd: number): boolean {
  return (eventsOf(fd) & POLLERR) !== 0;
}

/**
 * Shows what waits in a socket, in order. `fd` is the engine's copy of `file`.
 * @throws RepriseError UNSUPPORTED for urgent data, credentials and other control messages; SYSCALL
 */
export function peekQueue(
  file: OpenFile,
  fd: number,
  socket: { readonly type: number; readonly shutdown: number },
): Packet[] {
  // Nothing at all, in nearly all of thousands.
  if (pollNow(fd, POLLIN | POLLPRI) === 0) return [];
  refuseUrgent(file, fd);
  const offset = getNumber(fd, so.SOL_SOCKET, so.SO_PEEK_OFF);
  // The end of a sequence of packets looks like an empty packet: only a real one has credentials.
  const tell = socket.type === so.SOCK_SEQPACKET && (socket.shutdown & 1) !== 0;
  const asked = tell && getNumber(fd, so.SOL_SOCKET, so.SO_PASSCRED) === 0;
  const seen: Seen = { type: socket.type, mayEnd: tell, ignoreCredentials: asked };
  if (asked) setNumber(fd, { level: so.SOL_SOCKET, name: so.SO_PASSCRED, value: 1 });
  // Else every look would open a pidfd of the sender here.
  const passes = { level: so.SOL_SOCKET, name: so.SO_PASSPIDFD, size: 4 };
  const given = getOption(fd, passes);
  const pidfds = typeof given !== "number" && given.readInt32LE(0) !== 0;
  if (pidfds) setNumber(fd, { ...passes, value: 0 });
  const packets: Packet[] = [];
  try {
    setPeekOffset(fd, 0);
    const reader = new Reader(file, fd, seen);
    const limit = limitOf(file, fd, socket.type);
    while (reader.at < limit) {
      const packet = reader.next();
      if (packet === undefined) break;
      packets.push(packet);
    }
    return packets;
  } catch (error) {
    for (const { rights } of packets) closeAll(rights);
    throw error;
  } finally {
    setPeekOffset(fd, offset);
    if (pidfds) setNumber(fd, { ...passes, value: 1 });
    if (asked) setNumber(fd, { level: so.SOL_SOCKET, name: so.SO_PASSCRED, value: 0 });
  }
}

/** How many bytes may be looked for: behind the last an error would be taken. Of packets it comes before the first. */
function limitOf(file: OpenFile, fd: number, type: number): number {
  if (!hasError(fd)) return Infinity;
  const count = Buffer.alloc(4);
  syscall("ioctl", fd, FIONREAD, count);
  const waiting = count.readUInt32LE(0);
  if (type === so.SOCK_STREAM || waiting === 0) return waiting;
  getNumber(fd, so.SOL_SOCKET, so.SO_ERROR);
  log.loss(
    `fd ${file.fd} of pid ${file.task.pid} (${file.target}): that its connection was reset, before what it has not read yet`,
  );
  return Infinity;
}

interface Seen {
  readonly type: number;
  /** An empty packet without credentials is the end. */
  readonly mayEnd: boolean;
  /** The process itself did not ask for credentials. */
  readonly ignoreCredentials: boolean;
}

/** One for all: there may be thousands of sockets, with nearly nothing in each. */
let room: Buffer | undefined;

class Reader {
  readonly #file: OpenFile;
  readonly #fd: number;
  readonly #seen: Seen;
  /** Bytes shown so far. */
  #at = 0;

  constructor(file: OpenFile, fd: number, seen: Seen) {
    this.#file = file;
    this.#fd = fd;
    this.#seen = seen;
  }

  get at(): number {
    return this.#at;
  }

  next(): Packet | undefined {
    const isStream = this.#seen.type === so.SOCK_STREAM;
    const buffer = (room ??= Buffer.allocUnsafe(FIRST_READ));
    let message = this.#peek(buffer);
    if (message === undefined || (isStream && message.length === 0)) return undefined;
    if (message.length === 0 && this.#seen.mayEnd && !hasCredentials(message)) return undefined;
    if (message.length > buffer.length) {
      closeAll(rightsOf(message.control));
      setPeekOffset(this.#fd, this.#at);
      message = this.#peek(Buffer.allocUnsafe(message.length)) ?? message;
    }
    let rights = this.#control(message);
    let { data } = message;
    if (isStream && rights.length > 0) {
      const before = this.#beforeRights(data.length);
      if (before > 0) {
        // Two packets: what lies before the message with descriptors comes by itself.
        closeAll(rights);
        rights = [];
        data = data.subarray(0, before);
      }
    }
    this.#at += data.length;
    if (isStream) setPeekOffset(this.#fd, this.#at);
    const isDatagram = this.#seen.type === so.SOCK_DGRAM;
    // Behind the family.
    const sender = Buffer.from(isDatagram ? message.name.subarray(2) : []);
    return { data: Buffer.from(data), rights, sender };
  }

  #peek(buffer: Buffer): ReceivedMessage | undefined {
    // For streams MSG_TRUNC would mean something else.
    const whole = this.#seen.type === so.SOCK_STREAM ? 0 : so.MSG_TRUNC;
    const message = receiveMessage(this.#fd, buffer, so.MSG_PEEK | so.MSG_DONTWAIT | whole);
    if (typeof message !== "number") return message;
    if (message === -EAGAIN) return undefined;
    throw this.#error("SYSCALL", `recvmsg: ${errnoName(-message)}`);
  }

  /**
   * Bytes before the message of a stream that carries the descriptors, at whose end the `length` bytes end. With one byte too
   * little room for it, the kernel gives what fits whole.
   */
  #beforeRights(length: number): number {
    setPeekOffset(this.#fd, this.#at);
    const flags = so.MSG_PEEK | so.MSG_DONTWAIT;
    const fitting = receiveWholeMessages(this.#fd, Buffer.allocUnsafe(length - 1), flags);
    if (fitting === -EFAULT) return 0;
    if (fitting < 0) throw this.#error("SYSCALL", `recvmsg: ${errnoName(-fitting)}`);
    return fitting;
  }

  #control({ control, flags }: ReceivedMessage): number[] {
    const rights = rightsOf(control);
    const other = control.find((message) => !this.#isHarmless(message));
    if (other === undefined && (flags & so.MSG_CTRUNC) === 0) return rights;
    closeAll(rights);
    if (other === undefined) {
      throw this.#error("UNSUPPORTED", "the engine may not open the files in flight in its queue", {
        hint: "The limit on open files (ulimit -n) of the engine is too low.",
      });
    }
    const isCredentials = other.type === so.SCM_CREDENTIALS;
    throw this.#error(
      "UNSUPPORTED",
      `its queue has a control message (${isCredentials ? "SCM_CREDENTIALS" : `type ${other.type}`})`,
      { hint: "Only open files (SCM_RIGHTS) are saved with a message. Let the process read it." },
    );
  }

  /** Descriptors; a label of the security module, which the kernel makes again; the credentials of nobody. */
  #isHarmless({ level, type, data }: ControlMessage): boolean {
    if (level !== so.SOL_SOCKET) return false;
    if (type === so.SCM_RIGHTS || type === so.SCM_SECURITY) return true;
    if (SCM_TIMESTAMPS.includes(type)) return true;
    const isNobody = this.#seen.ignoreCredentials || data.readInt32LE(0) === 0;
    return type === so.SCM_CREDENTIALS && isNobody;
  }

  #error(code: "SYSCALL" | "UNSUPPORTED", why: string, { hint = "" } = {}): RepriseError {
    return queueError(this.#file, code, why, hint);
  }
}

function hasCredentials({ control }: ReceivedMessage): boolean {
  return control.some(({ type }) => type === so.SCM_CREDENTIALS);
}

/** Urgent data has a place of its own in the stream, which the images cannot tell. */
function refuseUrgent(file: OpenFile, fd: number): void {
  const flags = so.MSG_OOB | so.MSG_PEEK | so.MSG_DONTWAIT;
  if (trySyscall("recvfrom", fd, Buffer.alloc(1), 1, flags, 0, 0) <= 0) return;
  const hint = "Let the process read it before the dump.";
  throw queueError(file, "UNSUPPORTED", "its queue has urgent data (MSG_OOB)", hint);
}

function queueError(
  { task, fd, target }: OpenFile,
  code: "SYSCALL" | "UNSUPPORTED",
  why: string,
  hint: string,
): RepriseError {
  return new RepriseError(code, `cannot dump fd ${fd} of pid ${task.pid} (${target}): ${why}`, {
    pid: task.pid,
    fd,
    ...(hint === "" ? {} : { hint }),
  });
}

function rightsOf(control: readonly ControlMessage[]): number[] {
  return control
    .filter(({ level, type }) => level === so.SOL_SOCKET && type === so.SCM_RIGHTS)
    .flatMap(({ data }) =>
      Array.from({ length: data.length / 4 }, (_, index) => data.readInt32LE(index * 4)),
    );
}

/** Control messages of these options have their numbers: the time of sending becomes that of the restore. */
const SCM_TIMESTAMPS: readonly number[] = [
  so.SO_TIMESTAMP,
  so.SO_TIMESTAMPNS,
  so.SO_TIMESTAMPING,
  so.SO_TIMESTAMP_NEW,
  so.SO_TIMESTAMPNS_NEW,
  so.SO_TIMESTAMPING_NEW,
];

function setPeekOffset(fd: number, value: number): void {
  setNumber(fd, { level: so.SOL_SOCKET, name: so.SO_PEEK_OFF, value });
}

function closeAll(fds: readonly number[]): void {
  for (const fd of fds) trySyscall("close", fd);
}

/** A socket that sends a datagram under its own name. */
export interface NamedSender {
  readonly fd: number;
  /** The receiver's address. */
  readonly to: Uint8Array;
  /** Adds calls for when it has sent. */
  readonly done?: () => void;
}

export interface Filling {
  readonly sender: number;
  readonly what: string;
  readonly named?: (name: Uint8Array) => NamedSender | undefined;
}

/** Saved packets of a restore, put into queues by one program. */
export class QueueFiller {
  readonly #restore: FilesRestore;
  readonly #packets = new Map<number, ImageEntry<SkPacketEntry>[]>();
  /** Numbers for descriptors that are sent; each packet uses them anew. */
  readonly #carriers: number[] = [];
  #image: number | undefined;
  #buffer: Pointer | undefined;
  readonly #bufferSize: number;

  constructor(restore: FilesRestore) {
    this.#restore = restore;
    let largest = 0;
    for (const packet of restore.set.skQueues) {
      const { id_for, length } = packet.value;
      const queue = this.#packets.get(id_for);
      if (queue === undefined) this.#packets.set(id_for, [packet]);
      else queue.push(packet);
      largest = Math.max(largest, length);
    }
    this.#bufferSize = largest;
  }

  /** Whether anything waits in a socket. */
  has(fileId: number): boolean {
    return this.#packets.has(fileId);
  }

  /** Files in flight in a socket's queue. */
  rights(fileId: number): number[] {
    return (this.#packets.get(fileId) ?? []).flatMap(({ value }) =>
      value.scm.flatMap((scm) => scm.rights),
    );
  }

  /** Whether a queue has what can only be there when the tree is: handles of its processes. */
  isLate(fileId: number): boolean {
    const { files } = this.#restore.set;
    return this.rights(fileId).some((id) => {
      const file = files.get(id);
      return file !== undefined && isLivePidfd(file);
    });
  }

  /** Adds the calls that send everything that waits in a socket from `sender`, datagrams of others from them if `named` knows how. */
  fill(program: Program, fileId: number, { sender, what, named }: Filling): void {
    const packets = this.#packets.get(fileId) ?? [];
    if (packets.length === 0) return;
    liftSendLimit(program, { fd: sender, what: `the sender to ${what}` });
    for (const { value, payload } of packets) {
      const [part] = payload;
      const length = part?.length ?? 0;
      const data = this.#load(program, part?.offset ?? 0, length);
      const rights = value.scm.flatMap((scm) => scm.rights);
      const label = `put a message of ${length} bytes into the queue of ${what}`;
      const hint = "The queue may be longer than net.unix.max_dgram_qlen allows here.";
      const flags = so.MSG_DONTWAIT | so.MSG_NOSIGNAL;
      const options = { label, hint, expect: length };
      const other = value.sender === undefined ? undefined : named?.(value.sender);
      if (other !== undefined) liftSendLimit(program, { fd: other.fd, what: "a sender" });
      const from = other?.fd ?? sender;
      const address = other === undefined ? 0 : program.data(other.to);
      const size = other?.to.length ?? 0;
      if (rights.length === 0) {
        program.call("sendto", [from, data, length, flags, address, size], options);
      } else {
        const header = this.#header(program, { data, length, rights, to: other?.to });
        program.call("sendmsg", [from, header, flags], options);
        for (const carrier of this.#carriers.slice(0, rights.length)) {
          program.call("close", [carrier]);
        }
      }
      other?.done?.();
    }
  }

  /** Reads a packet's bytes from the image into the program's memory. */
  #load(program: Program, offset: number, length: number): Pointer {
    this.#buffer ??= program.output(Math.max(this.#bufferSize, 1));
    if (length === 0) return this.#buffer;
    this.#image ??= this.#openImage(program);
    program.call("pread64", [this.#image, this.#buffer, length, offset], {
      label: "read a message from sk-queues.img",
      expect: length,
    });
    return this.#buffer;
  }

  #openImage(program: Program): number {
    const opened = this.#restore.openImage(program, "sk-queues.img");
    return this.#place(program, opened, this.#restore.reserve());
  }

  #place(program: Program, opened: Argument, number: number): number {
    program.call("dup3", [opened, number, O_CLOEXEC], { label: "keep a descriptor for a message" });
    program.call("close", [opened]);
    return number;
  }

  /** struct msghdr with SCM_RIGHTS. */
  #header(
    program: Program,
    message: {
      readonly data: Pointer;
      readonly length: number;
      readonly rights: readonly number[];
      readonly to: Uint8Array | undefined;
    },
  ): Pointer {
    const { data, length, rights, to } = message;
    const numbers = Buffer.alloc(rights.length * 4);
    rights.forEach((id, index) => {
      const carrier = (this.#carriers[index] ??= this.#restore.reserve());
      this.#take(program, id, carrier);
      numbers.writeInt32LE(carrier, index * 4);
    });
    const control = encodeControl({ level: so.SOL_SOCKET, type: so.SCM_RIGHTS, data: numbers });
    const vector = Buffer.alloc(16);
    vector.writeUInt32LE(length, 8);
    const header = Buffer.alloc(56);
    header.writeUInt32LE(1, 24);
    header.writeUInt32LE(control.length, 40);
    header.writeUInt32LE(to?.length ?? 0, 8);
    const pointers = { 16: program.structure(vector, { 0: data }), 32: program.data(control) };
    const name = to === undefined ? {} : { 0: program.data(to) };
    return program.structure(header, { ...name, ...pointers });
  }

  #take(program: Program, id: number, carrier: number): void {
    const label = `take file ${id} for a message`;
    const fd = this.#restore.open(id);
    const file = this.#restore.set.files.get(id);
    if (typeof fd !== "number" || file === undefined || !isLivePidfd(file)) {
      program.call("dup3", [fd, carrier, O_CLOEXEC], { label });
      return;
    }
    const pidfd = takeCarried(program, fd, label);
    program.call("dup3", [pidfd, carrier, O_CLOEXEC], { label });
    program.call("close", [pidfd]);
  }
}
