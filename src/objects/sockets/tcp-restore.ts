// A TCP connection is made again without a packet to its peer: in repair mode connect(2) makes an established connection,
// queues are filled by send(2), and sequence numbers, options and windows are set (TCP_REPAIR, tcp(7); net/ipv4/tcp.c). The
// states of closing are walked through from there: our FIN by shutdown(2), the peer's by a packet that we write ourselves.
// A socket that is closed in repair mode vanishes in silence: until `resume` the peer sees nothing of a restore that fails.

import { RepriseError } from "../../errors.ts";
import type { InetSkEntry, TcpStreamEntry } from "../../images/schema/messages.generated.ts";
import * as inet from "../../sys/abi/inet.ts";
import {
  MSG_DONTWAIT,
  SO_RCVBUFFORCE,
  SO_REUSEADDR,
  SO_SNDBUFFORCE,
  SOL_SOCKET,
} from "../../sys/abi/socket.ts";
import { EINPROGRESS, errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program } from "../../tracee/program.ts";
import { endpoint, sockaddr, type SocketAddress } from "./inet-address.ts";
import type { PacketSender } from "./ip-packet.ts";
import { restoreBuffers } from "./socket-options.ts";
import { setKey } from "./tcp-signatures.ts";
import { ACK, FIN, tcpSegment } from "./tcp-segment.ts";

/** What a connection is made from. */
export interface SavedConnection {
  readonly entry: InetSkEntry;
  readonly stream: TcpStreamEntry;
  readonly received: Uint8Array;
  readonly written: Uint8Array;
  readonly local: SocketAddress;
  readonly remote: SocketAddress;
}

// Our FIN goes into the write queue before the peer's comes in, after it, or the peer has acknowledged it.
const OUR_FIN_FIRST = [inet.TCP_FIN_WAIT1, inet.TCP_FIN_WAIT2, inet.TCP_CLOSING];
const OUR_FIN_SECOND = [inet.TCP_LAST_ACK, inet.TCP_CLOSE];
const OUR_FIN_ACKNOWLEDGED = [inet.TCP_FIN_WAIT2, inet.TCP_CLOSE];
const THEIR_FIN = [inet.TCP_CLOSE_WAIT, inet.TCP_LAST_ACK, inet.TCP_CLOSE, inet.TCP_CLOSING];

/** Half of the largest buffer size, which the kernel doubles. */
const LARGEST_BUFFER = 0x3fff_ffff;
const CHUNK_MAX = 256 * 1024;
const CHUNK_MIN = 1024;

/** What TCP_MAXSEG takes: TCP_MIN_MSS, MAX_TCP_WINDOW. */
const SMALLEST_SEGMENT = 88;
const LARGEST_SEGMENT = 32_767;

/** A connection in repair mode, in the engine's copy of its descriptor. */
export class Connection {
  readonly #fd: number;
  readonly #saved: SavedConnection;
  readonly #sender: PacketSender;
  #unsent: Uint8Array = new Uint8Array(0);

  constructor(fd: number, saved: SavedConnection, sender: PacketSender) {
    this.#fd = fd;
    this.#saved = saved;
    this.#sender = sender;
  }

  /**
   * Makes the connection; the socket stays in repair mode. Its packets must be locked out.
   * @throws RepriseError SYSCALL
   */
  restore(): void {
    const { entry, stream, local, remote } = this.#saved;
    const is = (states: readonly number[]): boolean => states.includes(entry.state);
    this.#set("TCP_REPAIR", inet.TCP_REPAIR, inet.TCP_REPAIR_ON);
    this.#setSocket(SO_SNDBUFFORCE, LARGEST_BUFFER);
    this.#setSocket(SO_RCVBUFFORCE, LARGEST_BUFFER);
    this.#address("bind", local);

    // A FIN takes a number of its own, which is counted again when it is put back.
    const receivedEnd = stream.inq_seq - (is(THEIR_FIN) ? 1 : 0);
    const writtenEnd = stream.outq_seq - (is([...OUR_FIN_FIRST, ...OUR_FIN_SECOND]) ? 1 : 0);
    const synSent = entry.state === inet.TCP_SYN_SENT;
    this.#sequence(inet.TCP_RECV_QUEUE, receivedEnd - stream.inq_len);
    this.#sequence(inet.TCP_SEND_QUEUE, writtenEnd - stream.outq_len - (synSent ? 1 : 0));
    if (synSent) {
      // The handshake is not repaired but begun again, with the same number.
      this.#repairOff(inet.TCP_REPAIR_OFF_NO_WP);
      this.#address("connect", remote);
      this.#set("TCP_REPAIR", inet.TCP_REPAIR, inet.TCP_REPAIR_ON);
      return;
    }
    // The size of segments is computed here, and not again when the other end's limit is told by TCP_REPAIR_OPTIONS: it would
    // stay at 524 bytes. The limit of our own is taken for the other end's.
    const segment = Math.min(stream.mss_clamp, LARGEST_SEGMENT);
    if (segment >= SMALLEST_SEGMENT) this.#set("TCP_MAXSEG", inet.TCP_MAXSEG, segment);
    this.#address("connect", remote);
    if (segment >= SMALLEST_SEGMENT) this.#set("TCP_MAXSEG", inet.TCP_MAXSEG, 0);
    this.#options();
    this.#queues();
    this.#window(is(THEIR_FIN));
    this.#closing({ receivedEnd, writtenEnd });
  }

  /** Lets the connection go on: repair mode ends, and what was never sent is given to the socket. */
  resume(): void {
    const { entry } = this.#saved;
    this.#repairOff(inet.TCP_REPAIR_OFF);
    // Its own buffer may be too small for what was in it, which lies in other pieces now.
    if (this.#unsent.length > 0) this.#setSocket(SO_SNDBUFFORCE, LARGEST_BUFFER);
    this.#send(this.#unsent);
    this.#setSocket(SO_REUSEADDR, entry.opts.reuseaddr === true ? 1 : 0);
    const program = new Program();
    restoreBuffers(program, entry.opts, { fd: this.#fd, what: `connection ${entry.id}` });
    runHere(program);
  }

  #options(): void {
    const { stream } = this.#saved;
    const options: (readonly [number, number])[] = [];
    const has = (bit: number): boolean => (stream.opt_mask & bit) !== 0;
    if (has(inet.TCPI_OPT_SACK)) options.push([inet.TCPOPT_SACK_PERMITTED, 0]);
    if (has(inet.TCPI_OPT_WSCALE)) {
      options.push([inet.TCPOPT_WINDOW, stream.snd_wscale + (stream.rcv_wscale ?? 0) * 0x1_0000]);
    }
    if (has(inet.TCPI_OPT_TIMESTAMPS)) options.push([inet.TCPOPT_TIMESTAMP, 0]);
    options.push([inet.TCPOPT_MAXSEG, stream.mss_clamp]);
    const bytes = Buffer.alloc(options.length * 8);
    options.forEach(([code, value], index) => {
      bytes.writeUInt32LE(code, index * 8);
      bytes.writeUInt32LE(value, index * 8 + 4);
    });
    this.#setBytes("TCP_REPAIR_OPTIONS", inet.TCP_REPAIR_OPTIONS, bytes);
    if (has(inet.TCPI_OPT_TIMESTAMPS)) {
      this.#set("TCP_TIMESTAMP", inet.TCP_TIMESTAMP, stream.timestamp ?? 0);
    }
  }

  #queues(): void {
    const { entry, stream, received, written } = this.#saved;
    if (received.length > 0) {
      this.#set("TCP_REPAIR_QUEUE", inet.TCP_REPAIR_QUEUE, inet.TCP_RECV_QUEUE);
      this.#send(received);
    }
    const sent = written.length - (stream.unsq_len ?? 0);
    if (sent > 0) {
      this.#set("TCP_REPAIR_QUEUE", inet.TCP_REPAIR_QUEUE, inet.TCP_SEND_QUEUE);
      this.#send(written.subarray(0, sent));
    }
    this.#set("TCP_REPAIR_QUEUE", inet.TCP_REPAIR_QUEUE, inet.TCP_NO_QUEUE);
    const unsent = written.subarray(sent);
    if (unsent.length === 0) return;
    if (entry.state === inet.TCP_ESTABLISHED || entry.state === inet.TCP_CLOSE_WAIT) {
      // When all is ready: another end in the tree may not exist yet.
      this.#unsent = unsent;
      return;
    }
    this.#repairOff(inet.TCP_REPAIR_OFF_NO_WP);
    this.#send(unsent);
    this.#set("TCP_REPAIR", inet.TCP_REPAIR, inet.TCP_REPAIR_ON);
  }

  #window(theirFin: boolean): void {
    const { snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup } = this.#saved.stream;
    if (snd_wnd === undefined) return;
    const fin = theirFin ? 1 : 0;
    const window = Buffer.alloc(inet.TCP_REPAIR_WINDOW_SIZE);
    const words = [
      snd_wl1 ?? 0,
      snd_wnd,
      max_window ?? 0,
      (rcv_wnd ?? 0) + fin,
      (rcv_wup ?? 0) - fin,
    ];
    words.forEach((word, index) => window.writeUInt32LE(word >>> 0, index * 4));
    this.#setBytes("TCP_REPAIR_WINDOW", inet.TCP_REPAIR_WINDOW, window);
  }

  /** From ESTABLISHED to the state of closing. */
  #closing({ receivedEnd, writtenEnd }: { receivedEnd: number; writtenEnd: number }): void {
    const { entry, stream, local, remote } = this.#saved;
    const is = (states: readonly number[]): boolean => states.includes(entry.state);
    const acknowledged = is(OUR_FIN_ACKNOWLEDGED);
    if (entry.state === inet.TCP_ESTABLISHED) return;
    const segment = (flags: number, seq: number, ack: number): void => {
      const window = Math.min((stream.snd_wnd ?? 0) >>> stream.snd_wscale, 0xffff);
      this.#sender.send(this.#fd, tcpSegment({ from: remote, to: local, seq, ack, flags, window }));
    };
    const unacknowledged = writtenEnd - stream.outq_len;
    // The packets that we write have no signature.
    this.#keys({ isGone: true });
    if (is(OUR_FIN_FIRST)) this.#shutDown(acknowledged);
    if (is(THEIR_FIN)) segment(FIN | ACK, receivedEnd, unacknowledged);
    if (is(OUR_FIN_SECOND)) this.#shutDown(acknowledged);
    if (acknowledged) {
      segment(ACK, receivedEnd + (is(THEIR_FIN) ? 1 : 0), unacknowledged + 1);
    }
    this.#keys({ isGone: false });
  }

  #keys({ isGone }: { isGone: boolean }): void {
    const { entry } = this.#saved;
    for (const key of entry.reprise?.signature_keys ?? []) {
      const result = setKey(this.#fd, key, { socketFamily: entry.family, isGone });
      this.#must("setsockopt TCP_MD5SIG_EXT", result);
    }
  }

  /** Ends our side. A FIN in the send queue of repair mode counts as sent, another one is sent (into the lock). */
  #shutDown(acknowledged: boolean): void {
    const queue = (id: number): void => {
      if (acknowledged) this.#set("TCP_REPAIR_QUEUE", inet.TCP_REPAIR_QUEUE, id);
    };
    queue(inet.TCP_SEND_QUEUE);
    this.#must("shutdown", trySyscall("shutdown", this.#fd, SHUT_WR));
    queue(inet.TCP_NO_QUEUE);
  }

  #sequence(queue: number, seq: number): void {
    this.#set("TCP_REPAIR_QUEUE", inet.TCP_REPAIR_QUEUE, queue);
    this.#set("TCP_QUEUE_SEQ", inet.TCP_QUEUE_SEQ, seq);
  }

  /** In repair mode the kernel takes a piece whole into one buffer, or refuses it: then smaller ones may do. */
  #send(bytes: Uint8Array): void {
    let chunk = CHUNK_MAX;
    for (let at = 0; at < bytes.length;) {
      const part = bytes.subarray(at, at + chunk);
      const sent = trySyscall("sendto", this.#fd, part, part.length, MSG_DONTWAIT, 0, 0);
      if (sent > 0) at += sent;
      else if (chunk > CHUNK_MIN) chunk /= 2;
      else this.#must("sendto", sent);
    }
  }

  #repairOff(how: number): void {
    this.#set("TCP_REPAIR off", inet.TCP_REPAIR, how);
  }

  #address(call: "bind" | "connect", address: SocketAddress): void {
    const bytes = sockaddr(address);
    const result = trySyscall(call, this.#fd, bytes, bytes.length);
    if (call === "connect" && result === -EINPROGRESS) return;
    this.#must(call, result);
  }

  #set(what: string, name: number, value: number): void {
    const word = Buffer.alloc(4);
    word.writeUInt32LE(value >>> 0);
    this.#setBytes(what, name, word);
  }

  #setBytes(what: string, name: number, bytes: Buffer): void {
    const result = trySyscall("setsockopt", this.#fd, inet.SOL_TCP, name, bytes, bytes.length);
    this.#must(`setsockopt ${what}`, result);
  }

  #setSocket(name: number, value: number): void {
    const word = Buffer.alloc(4);
    word.writeUInt32LE(value);
    const result = trySyscall("setsockopt", this.#fd, SOL_SOCKET, name, word, 4);
    this.#must("setsockopt", result);
  }

  #must(call: string, result: number): void {
    if (result >= 0) return;
    const { entry, local, remote } = this.#saved;
    const text = (address: SocketAddress): string => {
      const end = endpoint(address);
      return `${end.address} port ${end.port}`;
    };
    const what = `connection ${entry.id} (${text(local)} to ${text(remote)})`;
    throw new RepriseError("SYSCALL", `cannot restore ${what}: ${call}: ${errnoName(-result)}`, {
      syscall: call.split(" ")[0] ?? call,
      errno: errnoName(-result),
      hint: call === "bind" ? ADDRESS_HINT : CONNECTION_HINT,
    });
  }
}

const SHUT_WR = 1;
const ADDRESS_HINT =
  "The local address must exist on this machine (ip address), and nobody else may use the port.";
const CONNECTION_HINT =
  "The same connection may exist already: end the program that was left running, or use --tcp-close.";
