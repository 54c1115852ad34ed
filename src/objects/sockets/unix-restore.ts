// Unix sockets at restore: all are made in the root task by one program (its calls: unix-calls.ts). Each lies at a reserved number,
// so that it can be connected and filled when all of them are there. In this order: sockets with their names; accepted
// connections, by connecting and accepting; queues that only a helper can fill; connections of datagram sockets; clients that wait
// to be accepted; the other queues; and last the options, which may make all this impossible.

import { assert } from "../../errors.ts";
import { encode } from "../../images/codec.ts";
import {
  CriuReqType,
  type FileEntry,
  type UnixSkEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { readUnixSockets } from "../../proc/sock-diag.ts";
import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import * as so from "../../sys/abi/socket.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { epollKind } from "../files/epoll.ts";
import type { FilesRestore } from "../files/file-kind.ts";
import { asUser } from "./socket-users.ts";
import { peerUser, refusedUnix, socketUser, UnixCalls, type MadeSocket } from "./unix-calls.ts";
import { addressOfName, isPath, showName } from "./unix-name.ts";
import { QueueFiller, type NamedSender } from "./unix-queue.ts";
import { UnixRelations, USK_EXTERN, what } from "./unix-relations.ts";

/** uflags of a socket whose owner asked for the dump. */
const USK_SERVICE = 2;

/** Adds the calls that make a socket, and those that it is connected to. */
export function openUnix(program: Program, file: FileEntry, restore: FilesRestore): Argument {
  const { id, usk } = file;
  assert(usk !== undefined, `file ${id} is no unix socket`);
  if ((usk.uflags & USK_SERVICE) !== 0) return openAsking(program, usk);
  let sockets = known.get(restore);
  if (sockets === undefined) {
    const fresh = new UnixSockets(restore);
    known.set(restore, (sockets = fresh));
    restore.later((last) => fresh.finish(last));
  }
  return sockets.make(program, usk).fd;
}

/** Its owner asked for the dump: in the copy that comes back, the answer is there, and says so. */
function openAsking(program: Program, usk: UnixSkEntry): Argument {
  const label = { label: `make ${what(usk)} with the answer to its dump` };
  const ends = program.output(8);
  program.call("socketpair", [so.AF_UNIX, usk.type, 0, ends], label);
  const answer = encode("criu_resp", {
    type: CriuReqType.DUMP,
    success: true,
    dump: { restored: true },
  });
  const far: Argument = { kind: "load", from: { ...ends, offset: ends.offset + 4 }, width: 4 };
  program.call("write", [far, program.data(answer), answer.length], label);
  program.call("close", [far]);
  return { kind: "load", from: ends, width: 4 };
}

/**
 * Adds the calls that only a task with all its descriptors can make for the files in flight in a socket: an epoll watches
 * descriptors of the task that is going to receive it.
 */
export function settleInFlight(
  program: Program,
  { id }: FileEntry,
  _fd: number,
  restore: FilesRestore,
): void {
  for (const { entry, fd } of known.get(restore)?.epollsInFlight(id) ?? []) {
    epollKind.settle?.(program, entry, fd, restore);
  }
}

const known = new WeakMap<FilesRestore, UnixSockets>();

/** A socket whose queue is filled, and who sends. */
interface Filled {
  readonly made: MadeSocket;
  readonly sender: number;
}

class UnixSockets {
  readonly #restore: FilesRestore;
  readonly #queues: QueueFiller;
  readonly #calls: UnixCalls;
  readonly #relations: UnixRelations;
  readonly #made = new Map<number, MadeSocket>();
  readonly #connected = new Set<number>();
  /** Names that sockets of the engine's network namespace have. */
  #taken: readonly Buffer[] | undefined;
  /** Queues that are filled when the tree is there. */
  readonly #late: Filled[] = [];
  /** Epolls that no task holds, by the socket in whose queue they are. */
  readonly #epolls = new Map<number, { readonly entry: FileEntry; readonly fd: number }[]>();

  constructor(restore: FilesRestore) {
    this.#restore = restore;
    this.#queues = new QueueFiller(restore);
    this.#calls = new UnixCalls(restore);
    this.#relations = new UnixRelations(restore.set);
  }

  make(program: Program, entry: UnixSkEntry): MadeSocket {
    const made = this.#made.get(entry.ino);
    if (made !== undefined) return made;
    if (entry.type === so.SOCK_DGRAM) this.#makeDatagram(program, entry);
    else if (entry.state === so.TCP_ESTABLISHED) this.#makeConnection(program, entry);
    else this.#makeAlone(program, entry);
    return this.#get(entry);
  }

  /** When all files that the tasks hold are open. */
  finish(program: Program): void {
    this.#openRights(program);
    const all = [...this.#made.values()];
    const datagrams = all.filter(({ entry }) => entry.type === so.SOCK_DGRAM);
    for (const made of datagrams) {
      if (made.helper !== undefined) this.#fill(program, made, made.helper);
    }
    for (const made of datagrams) this.#connectDatagram(program, made);
    for (const client of all
      .filter((made) => this.#relations.waits(made.entry))
      .toSorted(byPlace)) {
      const listener = this.#get(this.#relations.peer(client.entry));
      asUser(program, socketUser(client.entry), () => this.#connect(program, client, listener));
    }
    for (const made of all) {
      const sender =
        made.entry.type === so.SOCK_DGRAM ? this.#relations.sender(made.entry) : undefined;
      if (sender !== undefined) this.#fill(program, made, this.make(program, sender).fd);
      if (made.entry.type !== so.SOCK_DGRAM) this.#fillStream(program, made);
    }
    const late = this.#late;
    const isLate = ({ fd, helper = -1 }: MadeSocket): boolean =>
      late.some(({ made, sender }) =>
        [made.fd, sender].some((one) => one === fd || one === helper),
      );
    this.#end(
      program,
      all.filter((made) => !isLate(made)),
    );
    if (late.length === 0) return;
    this.#restore.lastly((last) => {
      const queues = new QueueFiller(this.#restore);
      for (const { made, sender } of late) this.#fillNow(last, queues, { made, sender });
      this.#end(last, all.filter(isLate));
    });
  }

  /** When the queues are filled. */
  #end(program: Program, sockets: readonly MadeSocket[]): void {
    for (const { entry, fd, helper } of sockets) {
      if (helper === undefined) continue;
      // Who is closed with something unread resets the connection.
      if (entry.reprise?.reset === true)
        program.call("sendto", [fd, program.data(Buffer.alloc(1)), 1, so.MSG_DONTWAIT, 0, 0]);
      program.call("close", [helper]);
    }
    for (const made of sockets) this.#calls.finish(program, made);
  }

  /** Epolls that are in flight to a socket, and that no task has. */
  epollsInFlight(fileId: number): readonly { readonly entry: FileEntry; readonly fd: number }[] {
    return this.#epolls.get(fileId) ?? [];
  }

  #isHeld(id: number): boolean {
    return [...this.#restore.set.tasks.values()].some(
      ({ live }) => live?.fdinfo.some((descriptor) => descriptor.id === id) === true,
    );
  }

  /** Opening a file in flight may make further sockets, with files in flight in them. */
  #openRights(program: Program): void {
    const opened = new Set<number>();
    for (const { entry } of this.#made.values()) {
      for (const id of this.#queues.rights(entry.id)) {
        if (opened.has(id)) continue;
        opened.add(id);
        const fd = this.#restore.open(id);
        const file = this.#restore.set.files.get(id);
        if (file?.epfd !== undefined && !this.#isHeld(id)) {
          const number = this.#restore.reserve();
          program.call("dup3", [fd, number, O_CLOEXEC], { label: `keep epoll ${id}` });
          const others = this.#epolls.get(entry.id) ?? [];
          this.#epolls.set(entry.id, [...others, { entry: file, fd: number }]);
        }
      }
    }
  }

  // Streams and sequences of packets

  /** A listener, or a socket that is not connected. */
  #makeAlone(program: Program, entry: UnixSkEntry): void {
    const fd = this.#calls.socket(program, entry);
    const file = this.#calls.bind(program, { entry, fd });
    this.#made.set(entry.ino, { entry, fd, file });
    if (entry.state !== so.TCP_LISTEN) return;
    asUser(program, peerUser(entry), () =>
      program.call("listen", [fd, Math.max(entry.backlog, MANY)], {
        label: `make ${what(entry)} listen`,
      }),
    );
  }

  #makeConnection(program: Program, entry: UnixSkEntry): void {
    const peer = entry.peer === 0 ? undefined : this.#relations.peer(entry);
    if (peer !== undefined && (peer.uflags & USK_EXTERN) !== 0) {
      throw refusedUnix(entry, "its connection leads out of the saved tree", {
        hint: "Connections cannot be cut in two.",
      });
    }
    if (peer?.state === so.TCP_LISTEN) {
      const fd = this.#calls.socket(program, entry);
      this.#made.set(entry.ino, { entry, fd, file: this.#calls.bind(program, { entry, fd }) });
      return;
    }
    if (peer !== undefined && peer.peer !== entry.ino) {
      throw refusedUnix(entry, `its peer, socket ${peer.ino}, is connected to another one`);
    }
    const accepted =
      this.#relations.accepted(entry, peer) ?? this.#withLostListener(program, entry, peer);
    const client = accepted === entry ? peer : entry;
    const listener = accepted === undefined ? undefined : this.#relations.listenerOf(accepted);
    const fds =
      accepted === undefined
        ? this.#calls.pair(program, { entry, peer })
        : listener === undefined
          ? this.#acceptOnce(program, { accepted, client })
          : this.#accept(program, { accepted, client, listener: this.make(program, listener) });
    const [own, other] = accepted === undefined || client === entry ? fds : fds.toReversed();
    if (accepted === undefined) {
      this.#bindChosen(program, entry, own as number);
      if (peer !== undefined) this.#bindChosen(program, peer, other as number);
    }
    this.#made.set(entry.ino, {
      entry,
      fd: own as number,
      helper: peer === undefined ? other : undefined,
    });
    if (peer !== undefined) this.#made.set(peer.ino, { entry: peer, fd: other as number });
  }

  /** The end of a connection that has a name, without a listener of that name: that is gone, or outside. */
  #withLostListener(
    program: Program,
    entry: UnixSkEntry,
    peer: UnixSkEntry | undefined,
  ): UnixSkEntry | undefined {
    const named = [entry, ...(peer === undefined ? [] : [peer])].filter(
      ({ name }) => name.length > 0 && !isChosenName(name),
    );
    const [one] = named;
    if (one === undefined) return undefined;
    if (named.length === 1 && this.#isFree(program, one)) return one;
    for (const lost of named)
      log.warn(`${what(lost)} comes back without its name (${showName(lost.name)})`);
    return undefined;
  }

  #isFree(program: Program, entry: UnixSkEntry): boolean {
    if (isPath(entry)) return this.#calls.names.isFree(program, entry);
    const name = Buffer.from(entry.name);
    this.#taken ??= readUnixSockets().map((socket) => socket.name);
    const saved = [...this.#restore.set.files.values()].flatMap(({ usk }) =>
      usk === undefined || usk.ino === entry.ino || usk.state === so.TCP_ESTABLISHED
        ? []
        : [usk.name],
    );
    return ![...this.#taken, ...saved].some((one) => name.equals(one));
  }

  /** Accepted from a listener for this one connection. */
  #acceptOnce(
    program: Program,
    ends: { readonly accepted: UnixSkEntry; readonly client: UnixSkEntry | undefined },
  ): [number, number] {
    const { accepted, client } = ends;
    const fd = this.#calls.socket(program, accepted);
    const binding = { fd, entry: accepted, what: what(accepted), hide: true };
    const file = this.#calls.names.bind(program, binding);
    asUser(program, client === undefined ? undefined : peerUser(client), () =>
      program.call("listen", [fd, 1], { label: `listen for ${what(accepted)}` }),
    );
    const both = this.#accept(program, { ...ends, listener: { entry: accepted, fd, file } });
    program.call("close", [fd]);
    return both;
  }

  /**
   * A connected socket that sends with credentials gets a name from the kernel. Any other name of one whose listener is not there
   * was the listener's: bound to it, the socket would keep it from others.
   */
  #bindChosen(program: Program, entry: UnixSkEntry, fd: number): void {
    if (isChosenName(entry.name)) this.#calls.bind(program, { entry, fd });
  }

  /** A connection as it came to be, so that both ends have their names. @returns client, accepted */
  #accept(
    program: Program,
    ends: {
      readonly accepted: UnixSkEntry;
      readonly client: UnixSkEntry | undefined;
      readonly listener: MadeSocket;
    },
  ): [number, number] {
    const { accepted, listener } = ends;
    const client = this.#calls.socket(program, ends.client ?? accepted);
    if (ends.client !== undefined) this.#calls.bind(program, { entry: ends.client, fd: client });
    // Who connects is who the accepted end saw.
    asUser(program, peerUser(accepted), () =>
      this.#calls.connect(program, { fd: client, entry: ends.client ?? accepted, to: listener }),
    );
    const taken = program.call("accept4", [listener.fd, 0, 0, so.SOCK_CLOEXEC], {
      label: `accept ${what(accepted)}`,
    });
    return [client, this.#calls.keep(program, taken)];
  }

  #fillStream(program: Program, made: MadeSocket): void {
    if (!this.#queues.has(made.entry.id)) return;
    const sender = made.helper ?? this.#get(this.#relations.peer(made.entry)).fd;
    this.#fill(program, made, sender);
  }

  // Datagrams

  #makeDatagram(program: Program, entry: UnixSkEntry): void {
    const peer = entry.peer === 0 ? undefined : this.#relations.find(entry.peer);
    if (peer !== undefined && this.#relations.isPair(entry, peer)) {
      const [own, other] = this.#calls.pair(program, { entry });
      const file = this.#calls.bind(program, { entry, fd: own });
      this.#made.set(entry.ino, { entry, fd: own, file });
      if (peer === entry) return;
      const peerFile = this.#calls.bind(program, { entry: peer, fd: other });
      this.#made.set(peer.ino, { entry: peer, fd: other, file: peerFile });
      this.#connected.add(entry.ino).add(peer.ino);
      return;
    }
    if (peer !== undefined && peer.name.length === 0 && peer !== entry) {
      // Nobody can be connected to a socket without a name but who was born with it.
      this.#makeDatagram(program, peer);
      if (this.#made.has(entry.ino)) return;
    }
    const follower =
      entry.name.length > 0
        ? undefined
        : this.#relations.others(entry).find((one) => !this.#made.has(one.ino));
    const needsHelper = this.#queues.has(entry.id) && this.#relations.sender(entry) === undefined;
    const wasConnected = entry.reprise?.peer_gone === true;
    if (follower === undefined && !needsHelper && !wasConnected) {
      const fd = this.#calls.socket(program, entry);
      this.#made.set(entry.ino, { entry, fd, file: this.#calls.bind(program, { entry, fd }) });
      return;
    }
    const [own, other] = this.#calls.pair(program, { entry });
    // One whose peer was closed stays connected to it until it sends.
    if (!wasConnected || follower !== undefined) {
      const nobody = addressOfName(new Uint8Array(0)).fill(so.AF_UNSPEC);
      program.call("connect", [own, program.data(nobody), nobody.length], {
        label: `take ${what(entry)} away from its sender`,
      });
    }
    const file = this.#calls.bind(program, { entry, fd: own });
    const helper = follower === undefined ? other : undefined;
    this.#made.set(entry.ino, { entry, fd: own, file, helper });
    if (follower === undefined) return;
    this.#made.set(follower.ino, {
      entry: follower,
      fd: other,
      file: this.#calls.bind(program, { entry: follower, fd: other }),
    });
    this.#connected.add(follower.ino);
  }

  /** Before a socket is connected, those that are connected to it must be: afterwards it listens to its peer alone. */
  #connectDatagram(program: Program, made: MadeSocket): void {
    const { entry } = made;
    if (entry.peer === 0 || this.#connected.has(entry.ino)) return;
    this.#connected.add(entry.ino);
    for (const one of this.#relations.others(entry)) {
      if (one.ino !== entry.peer) this.#connectDatagram(program, this.make(program, one));
    }
    this.#connect(program, made, this.#target(program, entry));
  }

  #target(program: Program, entry: UnixSkEntry): MadeSocket {
    const peer = this.#relations.peer(entry);
    if ((peer.uflags & USK_EXTERN) === 0) return this.make(program, peer);
    if (this.#restore.options.extUnixSk !== true) {
      throw refusedUnix(entry, `it was connected to a socket outside (${showName(peer.name)})`, {
        hint: "Use --ext-unix-sk, if that socket is there.",
      });
    }
    return { entry: peer, fd: -1 };
  }

  // What all have in common

  #fill(program: Program, made: MadeSocket, sender: number): void {
    if (this.#queues.isLate(made.entry.id)) this.#late.push({ made, sender });
    else this.#fillNow(program, this.#queues, { made, sender });
  }

  #fillNow(program: Program, queues: QueueFiller, { made, sender }: Filled): void {
    const { entry } = made;
    // A connected socket takes datagrams from its peer alone.
    const isOpen = entry.type === so.SOCK_DGRAM && entry.peer === 0 && entry.name.length > 0;
    queues.fill(program, entry.id, {
      sender,
      what: what(entry),
      ...(isOpen ? { named: (name) => this.#namedSender(program, made, name) } : {}),
    });
  }

  /** Who sends under a name: the socket of the tree that has it, or one for the moment, if the name is not one of the file system. */
  #namedSender(program: Program, receiver: MadeSocket, name: Uint8Array): NamedSender | undefined {
    const to = this.#calls.addressOf(receiver);
    const own = this.#relations.datagramNamed(name);
    if (own !== undefined && (own.uflags & USK_EXTERN) === 0)
      return { fd: this.make(program, own).fd, to };
    if (name[0] !== 0) return undefined;
    const fd = this.#calls.socket(program, receiver.entry);
    const address = addressOfName(name);
    // Somebody else may have taken the name: the datagram comes without one then.
    program.call("bind", [fd, program.data(address), address.length], { mayFail: true });
    return { fd, to, done: () => void program.call("close", [fd]) };
  }

  #connect(program: Program, from: MadeSocket, to: MadeSocket): void {
    this.#calls.connect(program, { fd: from.fd, entry: from.entry, to });
  }

  #get(entry: UnixSkEntry): MadeSocket {
    const made = this.#made.get(entry.ino);
    assert(made !== undefined, `${what(entry)} was not made`);
    return made;
  }
}

/** Names that the kernel gives: five hexadecimal digits (unix(7), autobind). */
// oxlint-disable-next-line no-control-regex -- the zero makes the name abstract
const AUTOBIND = /^\0[0-9a-f]{5}$/;

function isChosenName(name: Uint8Array): boolean {
  return AUTOBIND.test(Buffer.from(name).toString("latin1"));
}

/** A listener takes so many while its backlog is not set. */
const MANY = 128;

/** First come first: the place in the queue, and without one, the age. */
function byPlace(a: MadeSocket, b: MadeSocket): number {
  return a.entry.backlog - b.entry.backlog || a.entry.ino - b.entry.ino;
}
