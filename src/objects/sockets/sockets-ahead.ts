// Sockets that are written while the tree runs. All that their rooms read of them is asked twice, by one call for many: before they are
// written, and when the tree stands still. A socket that answers otherwise then, or of which the kernel's lists tell something else,
// is written again. So it does not matter who else has it than a task that slept, nor what comes in meanwhile.
//
// Not among what is asked: locks, which nobody can meet who has not the same socket, and the network namespace, which it keeps.

import { availableParallelism } from "node:os";
import { F_GETFL, F_GETOWN_EX, F_GETSIG } from "../../sys/abi/fcntl.ts";
import * as inet from "../../sys/abi/inet.ts";
import { POLLERR, POLLIN, POLLPRI, POLLRDHUP } from "../../sys/abi/poll.ts";
import * as so from "../../sys/abi/socket.ts";
import { ENOPROTOOPT, EOPNOTSUPP } from "../../sys/errno.ts";
import { getOption } from "../../sys/socket.ts";
import type { Pointer, Ref } from "../../tracee/program.ts";
import { Survey, type SurveyAnswers, type SurveyQuestions } from "../../tracee/survey.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import type { SocketKind } from "./further-options.ts";
import { inetAhead } from "./inet.ts";
import type { SocketOptionPlace } from "./option-question.ts";
import type { OptionArgument, SocketRoomAhead } from "./room-ahead.ts";
import { socketNamespace } from "./socket-namespace.ts";
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
const MANY = 512;
const MOST_PARTS = 4;

/** Sockets of one kind in one network namespace. */
interface Group {
  readonly files: readonly OpenFile[];
  /** Which of them may be written ahead. */
  readonly steady: readonly boolean[];
  readonly room: SocketRoomAhead;
  readonly survey: Survey;
  readonly before: SurveyAnswers;
}

export class SocketsAhead implements Disposable {
  readonly #dump: FilesDump;
  readonly #groups: Group[] = [];
  #count = 0;

  constructor(dump: FilesDump) {
    this.#dump = dump;
  }

  /** Asks sockets for the first time. @returns those that may be written now */
  add(files: readonly OpenFile[]): ReadonlySet<OpenFile> {
    const steady = new Set<OpenFile>();
    if (files.length < WORTH_IT || this.#count + files.length > MOST) return steady;
    this.#count += files.length;
    for (const { kind, files: alike } of this.#kinds(files)) {
      const room = roomOf(kind.family);
      if (room === undefined) continue;
      for (const group of this.#ask(alike, kind, room))
        group.files.forEach((file, index) => {
          if (group.steady[index] === true) steady.add(file);
        });
    }
    return steady;
  }

  /** Asks them once more: those of which something else is told now. */
  changed(): OpenFile[] {
    const lists = new Map<SocketRoomAhead, ReadonlySet<number> | "all">();
    const told = askAll(
      this.#groups.map(({ survey }) => survey),
      () => {
        for (const { room } of this.#groups)
          if (!lists.has(room)) lists.set(room, room.changed(this.#dump));
      },
    );
    return this.#groups.flatMap(({ files, steady, room, before }, group) => {
      const differing = new Set(before.differences(told[group] as SurveyAnswers));
      const others = lists.get(room) ?? new Set();
      if (differing.size === 0 && others !== "all" && others.size === 0) return [];
      return files.filter(
        (file, index) =>
          steady[index] === true &&
          (differing.has(index) || others === "all" || others.has(Number(file.stat.inode))),
      );
    });
  }

  [Symbol.dispose](): void {
    for (const { survey } of this.#groups.splice(0)) survey[Symbol.dispose]();
  }

  #kinds(files: readonly OpenFile[]): { readonly kind: SocketKind; readonly files: OpenFile[] }[] {
    const names = [so.SO_DOMAIN, so.SO_TYPE, so.SO_PROTOCOL, so.SO_NETNS_COOKIE];
    const values: Pointer[] = [];
    const fds = files.map((file) => this.#dump.borrow(file));
    using survey = new Survey(fds, (questions) => {
      for (const name of names)
        values.push(askOption(questions, { level: so.SOL_SOCKET, name, size: WORD * 2 }).value);
    });
    const told = survey.run();
    const found = new Map<string, { readonly kind: SocketKind; readonly files: OpenFile[] }>();
    files.forEach((file, index) => {
      const words = values.map((value) => told.word(index, value));
      const [family = 0, type = 0, proto = 0] = words;
      const alike = found.get(words.join());
      if (alike === undefined)
        found.set(words.join(), { kind: { family, type, proto }, files: [file] });
      else alike.files.push(file);
    });
    return [...found.values()];
  }

  #ask(files: readonly OpenFile[], kind: SocketKind, room: SocketRoomAhead): Group[] {
    const fd = this.#dump.borrow(files[0] as OpenFile);
    const place = socketNamespace(fd, this.#dump);
    const options = existing(fd, uniquePlaces(room.options(kind)));
    const given = room.arguments?.(kind, place, this.#dump) ?? [];
    const begun = inParts(files).map((part) => {
      const asked = new Asked();
      const fds = part.map((file) => this.#dump.borrow(file));
      const survey = new Survey(fds, (questions) => asked.ask(questions, { kind, options, given }));
      return { files: part, asked, survey };
    });
    const told = askAll(begun.map(({ survey }) => survey));
    const groups = begun.map(({ asked, survey, ...part }, index) => {
      const before = told[index] as SurveyAnswers;
      const steady = part.files.map(
        (file, at) =>
          asked.isPlain(before, at) &&
          room.isSteady(file, this.#dump, {
            kind,
            number: (level, name) => asked.number(before, at, { level, name }),
          }),
      );
      return { ...part, steady, room, survey, before };
    });
    this.#groups.push(...groups);
    return groups;
  }
}

/** Makes surveys side by side, on other threads, and something else meanwhile. @returns what was told, in their order */
function askAll(surveys: readonly Survey[], meanwhile?: () => void): SurveyAnswers[] {
  const [here, ...others] = surveys;
  if (here === undefined) return [];
  const waits = others.map((survey) => survey.runElsewhere());
  const errors: unknown[] = [];
  // Whatever fails, all of them are waited for.
  const tryTo = <T>(step: () => T): T | undefined => {
    try {
      return step();
    } catch (error) {
      errors.push(error);
      return undefined;
    }
  };
  if (meanwhile !== undefined) tryTo(meanwhile);
  const told = [() => here.run(), ...waits].map(tryTo);
  if (errors.length > 0) throw errors[0];
  return told as SurveyAnswers[];
}

function inParts<T>(all: readonly T[]): (readonly T[])[] {
  const parts = all.length < MANY ? 1 : Math.min(MOST_PARTS, availableParallelism());
  const size = Math.ceil(all.length / parts);
  return Array.from({ length: parts }, (_, part) => all.slice(part * size, (part + 1) * size));
}

/** Without those that sockets of this kind do not have, as one of them tells. */
function existing(fd: number, options: readonly SocketOptionPlace[]): SocketOptionPlace[] {
  return options.filter((option) => {
    const told = getOption(fd, option);
    return told !== -ENOPROTOOPT && told !== -EOPNOTSUPP;
  });
}

const WORD = 4;
/** Longer values are seldom there: a socket that has one is not written ahead. */
const LONGEST = 512;
const SHORT = 64;

/** struct f_owner_ex, struct stat, a struct sockaddr of any family here, struct timespec. */
const OWNER_SIZE = 8;
const STAT_SIZE = 144;
const ADDRESS_SIZE = 32;
const NO_TIME = Buffer.alloc(16);

interface Questions {
  readonly kind: SocketKind;
  readonly options: readonly SocketOptionPlace[];
  readonly given: readonly OptionArgument[];
}

interface AskedOption {
  readonly call: Ref;
  readonly value: Pointer;
  readonly length: Pointer;
}

/** What is asked of each socket, and where the answers are. */
class Asked {
  #signal: Ref | undefined;
  #owner: Pointer | undefined;
  #events: Pointer | undefined;
  readonly #options = new Map<number, AskedOption>();
  /** Options of which not all of a long value is told. */
  readonly #shortened: AskedOption[] = [];
  readonly #given: Ref[] = [];

  ask(questions: SurveyQuestions, { kind, options, given }: Questions): void {
    const { fd } = questions;
    questions.call("fcntl", [fd, F_GETFL, 0]);
    this.#signal = questions.call("fcntl", [fd, F_GETSIG, 0]);
    this.#owner = questions.output(OWNER_SIZE);
    questions.call("fcntl", [fd, F_GETOWN_EX, this.#owner]);
    questions.call("fstat", [fd, questions.output(STAT_SIZE)]);
    this.#events = questions.pollfd(POLLIN | POLLPRI | POLLRDHUP);
    questions.call("ppoll", [this.#events, 1, questions.input(NO_TIME), 0, 0]);
    if (kind.family !== so.AF_UNIX) {
      for (const call of ["getsockname", "getpeername"] as const)
        questions.call(call, [fd, questions.output(ADDRESS_SIZE), word(questions, ADDRESS_SIZE)]);
      questions.call("ioctl", [fd, inet.SIOCOUTQ, questions.output(WORD)]);
    }
    for (const option of options) {
      const isLong = option.size > LONGEST;
      const asked = askOption(questions, isLong ? { ...option, size: SHORT } : option);
      this.#options.set(keyOf(option), asked);
      if (isLong) this.#shortened.push(asked);
    }
    for (const { level, name, bytes } of given) {
      const args = [fd, level, name, questions.input(bytes), word(questions, bytes.length)];
      this.#given.push(questions.call("getsockopt", args));
    }
  }

  /** Nobody gets signals, nothing waits, there is no error, and no option of which not all is told. */
  isPlain(told: SurveyAnswers, index: number): boolean {
    if (this.#signal === undefined || this.#owner === undefined || this.#events === undefined)
      return false;
    const found = told.word(index, this.#events, WORD) >>> 16;
    return (
      told.value(index, this.#signal) === 0 &&
      told.word(index, this.#owner, WORD) === 0 &&
      (found & (POLLERR | POLLIN)) === 0 &&
      this.#given.every((call) => told.value(index, call) < 0) &&
      this.#shortened.every(
        ({ call, length }) => told.value(index, call) < 0 || told.word(index, length) < SHORT,
      )
    );
  }

  /** An option that is a word, or the first one of it. */
  number(
    told: SurveyAnswers,
    index: number,
    place: Pick<SocketOptionPlace, "level" | "name">,
  ): number | undefined {
    const option = this.#options.get(keyOf(place));
    if (option === undefined || told.value(index, option.call) < 0) return undefined;
    return told.word(index, option.value);
  }
}

function askOption(
  questions: SurveyQuestions,
  { level, name, size }: SocketOptionPlace,
): AskedOption {
  const [value, length] = [questions.output(size), word(questions, size)];
  return {
    call: questions.call("getsockopt", [questions.fd, level, name, value, length]),
    value,
    length,
  };
}

function word(questions: SurveyQuestions, value: number): Pointer {
  const bytes = Buffer.alloc(WORD);
  bytes.writeUInt32LE(value);
  return questions.input(bytes);
}

function uniquePlaces(places: readonly SocketOptionPlace[]): SocketOptionPlace[] {
  const found = new Map<number, SocketOptionPlace>();
  for (const place of places) {
    const known = found.get(keyOf(place));
    if (known === undefined || known.size < place.size) found.set(keyOf(place), place);
  }
  return [...found.values()];
}

/** Levels and names are small numbers. */
function keyOf({ level, name }: Pick<SocketOptionPlace, "level" | "name">): number {
  return level * 0x1_0000 + name;
}
