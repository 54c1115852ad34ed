// Sockets that are written while the tree runs. All that their rooms read of them is asked twice, by one call for many: before they are
// written, and when the tree stands still. A socket that answers otherwise then, or of which the kernel's lists tell something else,
// is written again. So it does not matter who else has it than a task that slept, nor what comes in meanwhile.
//
// Not among what is asked: locks, which nobody can meet who has not the same socket, and the network namespace, which it keeps.

import { assert } from "../../errors.ts";
import type { FileStat } from "../../proc/links.ts";
import { AT_EMPTY_PATH } from "../../sys/abi/fcntl.ts";
import * as so from "../../sys/abi/socket.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { parseStatx, STATX } from "../../sys/files.ts";
import { openPidfd } from "../../sys/process.ts";
import { processorCount } from "../../sys/processors.ts";
import type { Pointer, Ref } from "../../tracee/program.ts";
import { Survey, type SurveyAnswers } from "../../tracee/survey.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import { noteOwnerless } from "../files/owner.ts";
import type { SocketKind } from "./further-options.ts";
import { inetAhead } from "./inet.ts";
import type { RoomOptions, SocketRoomAhead } from "./room-ahead.ts";
import { Asked, askOption, ExistingOptions, Told, type KnownOptions } from "./socket-survey.ts";
import { socketNamespace, type SocketNamespace } from "./socket-namespace.ts";
import { asTold } from "./told.ts";
import { unixAhead } from "./unix.ts";

/** A function, since the rooms may be loaded later. */
function roomOf(family: number): SocketRoomAhead | undefined {
  if (family === so.AF_UNIX) return unixAhead;
  return family === so.AF_INET || family === so.AF_INET6 ? inetAhead : undefined;
}

/** Fewer are not worth the program. */
const WORTH_IT = 32;
/** More would take too much memory for what they answer. */
const MOST = 32_768;
/** So many and more are asked on several processors. */
const MANY = 1024;
const MOST_PARTS = 4;

/** The dump, as far as it keeps the engine's copies. */
export interface CopiesDump extends FilesDump {
  /** The copy of a descriptor, which belongs to the dump from now on. */
  keepCopy(copy: number): void;
  /** Tells that a file is what a kept copy leads to. */
  isCopyOf(copy: number, file: OpenFile): void;
}

/** A socket of a task. */
interface Found {
  readonly fd: number;
  /** The engine's. */
  readonly copy: number;
  readonly stat: FileStat;
  /** When it has been written. */
  file: OpenFile | undefined;
}

/** Sockets of one kind. */
interface Alike {
  readonly kind: SocketKind;
  /** The lower half of their network namespace's number. */
  readonly cookie: number;
  readonly sockets: Found[];
}

/** Those of them that are asked in one survey. */
interface Group {
  readonly sockets: readonly Found[];
  readonly room: SocketRoomAhead;
  readonly survey: Survey;
  before: SurveyAnswers | undefined;
}

/** A group whose survey has been begun. */
interface Begun {
  readonly group: Group;
  readonly asked: Asked;
  readonly kind: SocketKind;
  readonly place: SocketNamespace;
  /** Of all of the kind. */
  readonly known: KnownOptions[];
}

/** How a socket is written. */
export interface SocketWriter {
  /** Undefined for one that has to wait until the tree stands still. */
  readonly look: (fd: number, stat: FileStat) => OpenFile | undefined;
  readonly write: (file: OpenFile) => void;
}

export class SocketsAhead implements Disposable {
  readonly #dump: CopiesDump;
  readonly #groups: Group[] = [];
  #count = 0;

  constructor(dump: CopiesDump) {
    this.#dump = dump;
  }

  /**
   * Begins to ask sockets of a process, in the background.
   * @returns to be called when all that is needed besides is there: writes those that may be written now
   */
  begin(pid: number, fds: readonly number[]): (writer: SocketWriter) => void {
    if (fds.length < WORTH_IT || this.#count + fds.length > MOST) return () => undefined;
    this.#count += fds.length;
    const begun: Begun[] = [];
    for (const alike of this.#kinds(pid, fds)) {
      const room = alike.sockets.length < WORTH_IT ? undefined : roomOf(alike.kind.family);
      const options = room?.options(alike.kind);
      if (room === undefined || options === undefined) continue;
      begun.push(...this.#prepare(alike, room, options));
    }
    const wait = runAll(begun.map(({ group }) => group.survey));
    return (writer) => {
      const told = wait();
      begun.forEach((one, index) => {
        one.group.before = told[index];
        this.#write(one, writer);
      });
    };
  }

  /** Asks them once more, in the background. @returns waits; those of which something else is told now */
  compare(): () => OpenFile[] {
    const wait = runAll(this.#groups.map(({ survey }) => survey));
    return () => {
      const lists = new Map<SocketRoomAhead, ReadonlySet<number> | "all">();
      for (const { room } of this.#groups)
        if (!lists.has(room)) lists.set(room, room.changed(this.#dump));
      return this.#changed(wait(), lists);
    };
  }

  #changed(
    told: readonly SurveyAnswers[],
    lists: ReadonlyMap<SocketRoomAhead, ReadonlySet<number> | "all">,
  ): OpenFile[] {
    return this.#groups.flatMap(({ sockets, room, before }, group) => {
      const differing = new Set(before?.differences(told[group] as SurveyAnswers));
      const others = lists.get(room) ?? new Set();
      if (differing.size === 0 && others !== "all" && others.size === 0) return [];
      return sockets.flatMap(({ file, stat }, index) => {
        const isOther = differing.has(index) || others === "all" || others.has(Number(stat.inode));
        return file !== undefined && isOther ? [file] : [];
      });
    });
  }

  [Symbol.dispose](): void {
    for (const { survey } of this.#groups.splice(0)) survey[Symbol.dispose]();
  }

  /** Copies them, and sees what they are. */
  #kinds(pid: number, fds: readonly number[]): readonly Alike[] {
    const pidfd = openPidfd(pid);
    const names = [so.SO_DOMAIN, so.SO_TYPE, so.SO_PROTOCOL, so.SO_NETNS_COOKIE];
    const values: Pointer[] = [];
    let copy: Ref | undefined;
    let stat: Pointer | undefined;
    using survey = new Survey(fds, (questions) => {
      const fd = questions.call("pidfd_getfd", [pidfd, questions.number, 0]);
      stat = questions.output(STATX.size);
      const path = questions.input(Buffer.alloc(1));
      questions.call("statx", [fd, path, AT_EMPTY_PATH, STATX.basic, stat]);
      for (const name of names) {
        const option = { level: so.SOL_SOCKET, name, size: WORD * 2 };
        values.push(askOption(questions, option, fd).value);
      }
      copy = fd;
    });
    let told: SurveyAnswers;
    try {
      told = survey.run();
    } finally {
      trySyscall("close", pidfd);
    }
    const kinds: Alike[] = [];
    assert(copy !== undefined && stat !== undefined, "sockets were copied");
    for (const [index, fd] of fds.entries()) {
      const number = told.value(index, copy);
      if (number < 0) continue;
      this.#dump.keepCopy(number);
      const bytes = told.output(index, stat, STATX.size);
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      const socket = { fd, copy: number, stat: parseStatx(view), file: undefined };
      const alike = kindOf(kinds, values, { told, index });
      alike.sockets.push(socket);
    }
    return kinds;
  }

  #prepare({ kind, sockets }: Alike, room: SocketRoomAhead, options: RoomOptions): Begun[] {
    const fd = (sockets[0] as Found).copy;
    const place = socketNamespace(fd, this.#dump);
    const given = room.arguments?.(kind, place, this.#dump) ?? [];
    const questions = { kind, options: new ExistingOptions(fd, options), given };
    const known: KnownOptions[] = [];
    return inParts(sockets).map((part) => {
      const asked = new Asked();
      const copies = part.map(({ copy }) => copy);
      const survey = new Survey(copies, (to) => asked.ask(to, questions));
      const group: Group = { sockets: part, room, survey, before: undefined };
      this.#groups.push(group);
      return { group, asked, kind, place, known };
    });
  }

  #write({ group, asked, kind, place, known }: Begun, writer: SocketWriter): void {
    const { before } = group;
    assert(before !== undefined, "sockets have been asked");
    group.sockets.forEach((socket, at) => {
      if (!asked.isPlain(before, at)) return;
      const file = writer.look(socket.fd, socket.stat);
      if (file === undefined) return;
      this.#dump.isCopyOf(socket.copy, file);
      const told = new Told(asked, { before, at }, { kind, place, known });
      if (!group.room.isSteady(file, this.#dump, told)) return;
      socket.file = file;
      noteOwnerless(file);
      asTold(socket.copy, told, () => writer.write(file));
    });
  }
}

const WORD = 4;

/** Those of the kind of a socket; there are few, so they are looked through without a key. */
function kindOf(
  kinds: Alike[],
  values: readonly Pointer[],
  { told, index }: { readonly told: SurveyAnswers; readonly index: number },
): Alike {
  const [family, type, proto, cookie] = values as [Pointer, Pointer, Pointer, Pointer];
  for (const alike of kinds) {
    const { kind } = alike;
    if (
      told.word(index, family) === kind.family &&
      told.word(index, type) === kind.type &&
      told.word(index, proto) === kind.proto &&
      told.word(index, cookie) === alike.cookie
    )
      return alike;
  }
  const kind = {
    family: told.word(index, family),
    type: told.word(index, type),
    proto: told.word(index, proto),
  };
  const alike = { kind, cookie: told.word(index, cookie), sockets: [] };
  kinds.push(alike);
  return alike;
}

/**
 * Begins surveys side by side, on other threads, as far as that is worth it.
 * @returns waits for them; what was told, in their order
 */
function runAll(surveys: readonly Survey[]): () => SurveyAnswers[] {
  const begun = surveys.map((survey) =>
    survey.count < MANY / MOST_PARTS ? (): SurveyAnswers => survey.run() : survey.runElsewhere(),
  );
  return () => {
    const errors: unknown[] = [];
    // Whatever fails, all of them are waited for.
    const told = begun.map((wait) => {
      try {
        return wait();
      } catch (error) {
        errors.push(error);
        return undefined;
      }
    });
    if (errors.length > 0) throw errors[0];
    return told as SurveyAnswers[];
  };
}

function inParts<T>(all: readonly T[]): (readonly T[])[] {
  const parts = all.length < MANY ? 1 : Math.min(MOST_PARTS, processorCount());
  const size = Math.ceil(all.length / parts);
  return Array.from({ length: parts }, (_, part) => all.slice(part * size, (part + 1) * size));
}
