// The inside of a TCP connection, read from outside: queues, sequence numbers, negotiated options, windows. The kernel tells
// most of it only in repair mode (TCP_REPAIR, tcp(7); net/ipv4/tcp.c), which belongs to the socket and so to its owner: a
// socket left in it sends nothing more. So repair mode lasts for one native call and ends in it, whatever fails between;
// nothing but a SIGKILL within those microseconds can leave it behind. format.md section 11, tcp-stream.

import { RepriseError } from "../../errors.ts";
import type { MessageInput } from "../../images/codec.ts";
import type { TcpStreamEntry } from "../../images/schema/messages.generated.ts";
import * as inet from "../../sys/abi/inet.ts";
import { MSG_DONTWAIT, MSG_OOB, MSG_PEEK, SO_REUSEADDR, SOL_SOCKET } from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, syscallError, trySyscall } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program, type Pointer, type ProgramResult, type Ref } from "../../tracee/program.ts";
import { getNumber, getOption, receiveMessage, setNumber } from "../../sys/socket.ts";

/** A connection, ready for tcp-stream-INO.img. */
export interface TcpStream {
  readonly state: number;
  readonly entry: MessageInput<TcpStreamEntry>;
  /** Received and not read by the program. */
  readonly received: Uint8Array;
  /** Written by the program and not acknowledged; the last `unsq_len` bytes were never sent. */
  readonly written: Uint8Array;
}

/** tcpi_state, tcpi_options, and the two window scales. */
export interface TcpInfo {
  readonly state: number;
  readonly options: number;
  readonly sendScale: number;
  readonly receiveScale: number;
  /** Of a listener: connections that wait to be accepted, and how many may. */
  readonly waiting: number;
  readonly backlog: number;
}

/** Enough of struct tcp_info. */
export const TCP_INFO_SIZE = 104;
const TCPI_UNACKED = 24;
const TCPI_SACKED = 28;

/** What TCP_INFO tells. `get` reads the option into the buffer. */
function parseTcpInfo(info: Buffer): TcpInfo {
  const scales = info.readUInt8(6);
  return {
    state: info.readUInt8(0),
    options: info.readUInt8(5),
    sendScale: scales & 15,
    receiveScale: scales >> 4,
    waiting: info.readUInt32LE(TCPI_UNACKED),
    backlog: info.readUInt32LE(TCPI_SACKED),
  };
}

/** Reads TCP_INFO of a socket. */
export function readTcpInfo(fd: number): TcpInfo {
  const info = getOption(fd, { level: inet.SOL_TCP, name: inet.TCP_INFO, size: TCP_INFO_SIZE });
  if (typeof info === "number") throw syscallError("getsockopt", -info, "read TCP_INFO");
  return parseTcpInfo(info);
}

/** States in which the program has ended its side: a FIN stands at the end of the write queue. */
const FIN_WRITTEN: readonly number[] = [
  inet.TCP_FIN_WAIT1,
  inet.TCP_FIN_WAIT2,
  inet.TCP_CLOSING,
  inet.TCP_LAST_ACK,
  inet.TCP_CLOSE,
];

/**
 * Reads a connection and leaves it as it was. The tasks that hold it must be stopped and its packets locked out.
 * @throws RepriseError SYSCALL
 */
export function readTcpStream(fd: number): TcpStream {
  const info = readTcpInfo(fd);
  const lengths = queueLengths(fd, info.state);
  const program = new Program();
  const query = addQuery(program, fd, {
    ...lengths,
    reuse: getNumber(fd, SOL_SOCKET, SO_REUSEADDR),
  });
  const result = runHere(program);
  for (const { what, ref, expect } of query.steps) check(what, result.value(ref), expect);
  const window = result.bytes(query.window, inet.TCP_REPAIR_WINDOW_SIZE);
  const word = (pointer: Pointer): number => result.bytes(pointer, 4).readUInt32LE(0);
  const { options } = info;
  return {
    state: info.state,
    entry: {
      inq_len: lengths.received,
      inq_seq: word(query.receivedSeq),
      outq_len: lengths.written,
      outq_seq: word(query.writtenSeq),
      opt_mask: options,
      snd_wscale: (options & inet.TCPI_OPT_WSCALE) === 0 ? 0 : info.sendScale,
      mss_clamp: word(query.mss),
      ...((options & inet.TCPI_OPT_WSCALE) === 0 ? {} : { rcv_wscale: info.receiveScale }),
      ...((options & inet.TCPI_OPT_TIMESTAMPS) === 0 ? {} : { timestamp: word(query.timestamp) }),
      unsq_len: lengths.unsent,
      snd_wl1: window.readUInt32LE(0),
      snd_wnd: window.readUInt32LE(4),
      max_window: window.readUInt32LE(8),
      rcv_wnd: window.readUInt32LE(12),
      rcv_wup: window.readUInt32LE(16),
    },
    received: copyOf(result, query.received, lengths.received),
    written: copyOf(result, query.written, lengths.written),
  };
}

/**
 * Whether a connection has an urgent byte in what it has not read yet (MSG_OOB, tcp(7)). A look at the queue, and its length, end at that
 * byte, with more behind it perhaps; with TCP_INQ the kernel tells the true length.
 */
export function hasUrgentData(fd: number): boolean {
  const flags = MSG_PEEK | MSG_DONTWAIT;
  if (trySyscall("recvfrom", fd, Buffer.alloc(1), 1, flags | MSG_OOB, 0, 0) > 0) return true;
  const asked = { level: inet.SOL_TCP, name: inet.TCP_INQ };
  const before = getOption(fd, { ...asked, size: 4 });
  if (typeof before === "number") return false;
  setNumber(fd, { ...asked, value: 1 });
  const message = receiveMessage(fd, Buffer.alloc(1), flags);
  setNumber(fd, { ...asked, value: before.readInt32LE(0) });
  if (typeof message === "number") return false;
  const told = message.control.find(
    ({ level, type }) => level === inet.SOL_TCP && type === inet.TCP_INQ,
  );
  if (told === undefined) return false;
  const { state } = readTcpInfo(fd);
  // The peer's FIN counts as a byte here.
  const fin = FIN_RECEIVED.includes(state) ? 1 : 0;
  return told.data.readUInt32LE(0) > queueLengths(fd, state).received + fin;
}

const FIN_RECEIVED: readonly number[] = [
  inet.TCP_CLOSE_WAIT,
  inet.TCP_LAST_ACK,
  inet.TCP_CLOSING,
  inet.TCP_CLOSE,
];

interface QueueLengths {
  readonly received: number;
  readonly written: number;
  readonly unsent: number;
}

function queueLengths(fd: number, state: number): QueueLengths {
  const count = (request: number): number => {
    const value = Buffer.alloc(4);
    syscall("ioctl", fd, request, value);
    return value.readInt32LE(0);
  };
  const received = count(inet.SIOCINQ);
  // What a closed connection still had to send goes nowhere any more.
  if (state === inet.TCP_CLOSE) return { received, written: 0, unsent: 0 };
  const fin = FIN_WRITTEN.includes(state) ? 1 : 0;
  const without = (bytes: number): number => Math.max(0, bytes - fin);
  return {
    received,
    written: without(count(inet.SIOCOUTQ)),
    unsent: without(count(inet.SIOCOUTQNSD)),
  };
}

interface Query {
  readonly steps: readonly { readonly what: string; readonly ref: Ref; readonly expect?: number }[];
  readonly mss: Pointer;
  readonly timestamp: Pointer;
  readonly window: Pointer;
  readonly receivedSeq: Pointer;
  readonly writtenSeq: Pointer;
  readonly received: Pointer;
  readonly written: Pointer;
}

/** Every call may fail, so that the last ones are reached: they end repair mode. */
function addQuery(
  program: Program,
  fd: number,
  { received, written, reuse }: QueueLengths & { readonly reuse: number },
): Query {
  const steps: { what: string; ref: Ref; expect?: number }[] = [];
  const mayFail = true;
  const set = (level: number, name: number, value: number): Ref => {
    const word = Buffer.alloc(4);
    word.writeInt32LE(value);
    return program.call("setsockopt", [fd, level, name, program.data(word), 4], { mayFail });
  };
  const get = (what: string, name: number, size = 4): Pointer => {
    const value = program.output(size);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(size);
    const args = [fd, inet.SOL_TCP, name, value, program.data(length)];
    steps.push({ what: `getsockopt ${what}`, ref: program.call("getsockopt", args, { mayFail }) });
    return value;
  };
  const queue = (id: number, length: number): { seq: Pointer; bytes: Pointer } => {
    steps.push({
      what: "setsockopt TCP_REPAIR_QUEUE",
      ref: set(inet.SOL_TCP, inet.TCP_REPAIR_QUEUE, id),
    });
    const seq = get("TCP_QUEUE_SEQ", inet.TCP_QUEUE_SEQ);
    const bytes = program.output(length + 1);
    if (length > 0) {
      // One byte more than there should be: the queue must not have grown.
      const args = [fd, bytes, length + 1, MSG_PEEK | MSG_DONTWAIT, 0, 0];
      steps.push({
        what: "recvfrom",
        ref: program.call("recvfrom", args, { mayFail }),
        expect: length,
      });
    }
    return { seq, bytes };
  };

  const on = set(inet.SOL_TCP, inet.TCP_REPAIR, inet.TCP_REPAIR_ON);
  steps.push({ what: "setsockopt TCP_REPAIR", ref: on });
  const mss = get("TCP_MAXSEG", inet.TCP_MAXSEG);
  const timestamp = get("TCP_TIMESTAMP", inet.TCP_TIMESTAMP);
  const window = get("TCP_REPAIR_WINDOW", inet.TCP_REPAIR_WINDOW, inet.TCP_REPAIR_WINDOW_SIZE);
  const into = queue(inet.TCP_RECV_QUEUE, received);
  const out = queue(inet.TCP_SEND_QUEUE, written);
  set(inet.SOL_TCP, inet.TCP_REPAIR_QUEUE, inet.TCP_NO_QUEUE);
  const off = set(inet.SOL_TCP, inet.TCP_REPAIR, inet.TCP_REPAIR_OFF_NO_WP);
  steps.push({ what: "setsockopt TCP_REPAIR off", ref: off });
  // Leaving repair mode clears it.
  steps.push({ what: "setsockopt SO_REUSEADDR", ref: set(SOL_SOCKET, SO_REUSEADDR, reuse) });
  return {
    steps,
    mss,
    timestamp,
    window,
    receivedSeq: into.seq,
    received: into.bytes,
    writtenSeq: out.seq,
    written: out.bytes,
  };
}

function check(what: string, value: number, expect: number | undefined): void {
  if (value >= 0 && (expect === undefined || value === expect)) return;
  const why = value < 0 ? errnoName(-value) : `${value} bytes instead of ${expect}`;
  throw new RepriseError("SYSCALL", `cannot look into a TCP connection: ${what}: ${why}`, {
    ...(value < 0 ? { errno: errnoName(-value) } : {}),
    hint:
      value < 0
        ? "Repair mode needs root (CAP_NET_ADMIN)."
        : "Somebody outside of the tree uses this connection, or its packets are not locked out.",
  });
}

function copyOf(result: ProgramResult, pointer: Pointer, length: number): Uint8Array {
  return Uint8Array.from(result.bytes(pointer, length));
}
