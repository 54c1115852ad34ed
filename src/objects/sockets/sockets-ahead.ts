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
import {
  Survey,
  type SurveyAnswers,
  type SurveyQuestions,
  type SurveyRange,
} from "../../tracee/survey.ts";
import type { FilesDump, OpenFile } from "../files/file-kind.ts";
import { noteOwnerless } from "../files/owner.ts";
import type { SocketKind } from "./further-options.ts";
import { inetAhead } from "./inet.ts";
import type { SocketOptionPlace } from "./option-question.ts";
import type {
  MadeOptions,
  OptionArgument,
  RoomOptions,
  SocketRoomAhead,
  ToldSocket,
} from "./room-ahead.ts";
import { asTold } from "./told.ts";
import { socketNamespace, type SocketNamespace } from "./socket-namespace.ts";
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

  /** Asks sockets for the first time. `write` is given those that may be written now, and runs with what they have told. */
  add(files: readonly OpenFile[], write: Write): void {
    if (files.length < WORTH_IT || this.#count + files.length > MOST) return;
    this.#count += files.length;
    for (const { kind, files: alike } of this.#kinds(files)) {
      const room = alike.length < WORTH_IT ? undefined : roomOf(kind.family);
      const options = room?.options(kind);
      if (room === undefined || options === undefined) continue;
      this.#ask(alike, { kind, room, options }, write);
    }
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

  /** Several surveys, which may be made side by side. */
  #ask(files: readonly OpenFile[], { kind, room, options }: Asking, write: Write): void {
    const fd = this.#dump.borrow(files[0] as OpenFile);
    const place = socketNamespace(fd, this.#dump);
    const given = room.arguments?.(kind, place, this.#dump) ?? [];
    const questions = { kind, options: new ExistingOptions(fd, options), given };
    const begun = inParts(files).map((part) => {
      const asked = new Asked();
      const fds = part.map((file) => this.#dump.borrow(file));
      const survey = new Survey(fds, (to) => asked.ask(to, questions));
      return { files: part, steady: part.map(() => false), room, asked, survey };
    });
    const told = askAll(begun.map(({ survey }) => survey));
    const made = new Map<string, MadeOptions>();
    begun.forEach(({ asked, ...group }, index) => {
      const before = told[index] as SurveyAnswers;
      this.#groups.push({ ...group, before });
      group.files.forEach((file, at) => {
        if (!asked.isPlain(before, at)) return;
        const socket = new Told(asked, { before, at }, { kind, place, made });
        if (!room.isSteady(file, this.#dump, socket)) return;
        group.steady[at] = true;
        noteOwnerless(file);
        asTold(this.#dump.borrow(file), socket, () => write(file));
      });
    });
  }
}

type Write = (file: OpenFile) => void;

interface Asking {
  readonly kind: SocketKind;
  readonly room: SocketRoomAhead;
  readonly options: RoomOptions;
}

/** Makes surveys side by side, large ones on other threads, and something else meanwhile. @returns what was told, in their order */
function askAll(surveys: readonly Survey[], meanwhile?: () => void): SurveyAnswers[] {
  const begun = surveys.map((survey, index) =>
    index > 0 && survey.count >= MANY / MOST_PARTS
      ? survey.runElsewhere()
      : (): SurveyAnswers => survey.run(),
  );
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
  const told = begun.map(tryTo);
  if (errors.length > 0) throw errors[0];
  return told as SurveyAnswers[];
}

function inParts<T>(all: readonly T[]): (readonly T[])[] {
  const parts = all.length < MANY ? 1 : Math.min(MOST_PARTS, availableParallelism());
  const size = Math.ceil(all.length / parts);
  return Array.from({ length: parts }, (_, part) => all.slice(part * size, (part + 1) * size));
}

/** The options that a room asks for without those that sockets of this kind do not have, as one of them tells. */
class ExistingOptions {
  readonly own: readonly SocketOptionPlace[];
  readonly shared: readonly SocketOptionPlace[];
  /** Of those that are not there: the negative error number. */
  readonly missing = new Map<number, number>();

  constructor(fd: number, { own, shared }: RoomOptions) {
    const isThere = (option: SocketOptionPlace): boolean => {
      const told = getOption(fd, option);
      if (told !== -ENOPROTOOPT && told !== -EOPNOTSUPP) return true;
      this.missing.set(keyOf(option), told);
      return false;
    };
    this.shared = uniquePlaces(shared).filter(isThere);
    const known = new Set(shared.map(keyOf));
    this.own = uniquePlaces(own).filter((option) => !known.has(keyOf(option)) && isThere(option));
  }
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
  readonly options: ExistingOptions;
  readonly given: readonly OptionArgument[];
}

interface AskedOption {
  readonly size: number;
  readonly call: Ref;
  readonly value: Pointer;
  readonly length: Pointer;
}

/** struct pollfd: behind the descriptor, what is looked for, and what is found. */
const POLLFD_SIZE = 8;
const EVENTS_AT = 4;

/** What is asked of each socket, and where the answers are. */
class Asked {
  #signal: Ref | undefined;
  #owner: Pointer | undefined;
  #events: Pointer | undefined;
  #address: Pointer | undefined;
  #range: SurveyRange | undefined;
  readonly #options = new Map<number, AskedOption>();
  #missing: ReadonlyMap<number, number> = new Map();
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
    const pollfd = Buffer.alloc(POLLFD_SIZE);
    pollfd.writeInt32LE(fd, 0);
    pollfd.writeUInt16LE(POLLIN | POLLPRI | POLLRDHUP, EVENTS_AT);
    this.#events = questions.input(pollfd);
    questions.call("ppoll", [this.#events, 1, questions.input(NO_TIME), 0, 0]);
    if (kind.family !== so.AF_UNIX) {
      const [own, peer] = [questions.output(ADDRESS_SIZE), questions.output(ADDRESS_SIZE)];
      questions.call("getsockname", [fd, own, word(questions, ADDRESS_SIZE)]);
      questions.call("getpeername", [fd, peer, word(questions, ADDRESS_SIZE)]);
      this.#address = own;
      questions.call("ioctl", [fd, inet.SIOCOUTQ, questions.output(WORD)]);
    }
    this.#missing = options.missing;
    const shared = options.shared.map((option) => this.#askOption(questions, option));
    const [first, last] = [shared[0], shared.at(-1)];
    if (first !== undefined && last !== undefined) {
      const range = { first: first.call, last: last.call, start: first.value.offset };
      this.#range = { ...range, end: last.length.offset + WORD };
    }
    for (const option of options.own) this.#askOption(questions, option);
    for (const { level, name, bytes } of given) {
      const args = [fd, level, name, questions.input(bytes), word(questions, bytes.length)];
      this.#given.push(questions.call("getsockopt", args));
    }
  }

  #askOption(questions: SurveyQuestions, option: SocketOptionPlace): AskedOption {
    const isLong = option.size > LONGEST;
    const asked = {
      ...askOption(questions, isLong ? { ...option, size: SHORT } : option),
      size: option.size,
    };
    this.#options.set(keyOf(option), asked);
    if (isLong) this.#shortened.push(asked);
    return asked;
  }

  /** Nobody gets signals, nothing waits, there is no error, and no option of which not all is told. */
  isPlain(told: SurveyAnswers, index: number): boolean {
    if (this.#signal === undefined || this.#owner === undefined) return false;
    return (
      told.value(index, this.#signal) === 0 &&
      told.word(index, this.#owner, WORD) === 0 &&
      (this.events(told, index) & (POLLERR | POLLIN)) === 0 &&
      this.#given.every((call) => told.value(index, call) < 0) &&
      this.#shortened.every(
        ({ call, length }) => told.value(index, call) < 0 || told.word(index, length) < SHORT,
      )
    );
  }

  events(told: SurveyAnswers, index: number): number {
    return this.#events === undefined ? 0 : told.word(index, this.#events, EVENTS_AT) >>> 16;
  }

  address(told: SurveyAnswers, index: number): Buffer {
    return this.#address === undefined ? NO_TIME : told.output(index, this.#address, ADDRESS_SIZE);
  }

  text(told: SurveyAnswers, index: number): string {
    return this.#range === undefined ? "" : told.text(index, this.#range);
  }

  /** As an OptionSource. */
  find(told: SurveyAnswers, index: number, option: SocketOptionPlace): Buffer | number | undefined {
    const key = keyOf(option);
    const asked = this.#options.get(key);
    if (asked === undefined) return this.#missing.get(key);
    if (asked.size !== option.size) return undefined;
    const result = told.value(index, asked.call);
    if (result < 0) return result;
    return told.output(index, asked.value, Math.min(told.word(index, asked.length), asked.size));
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

interface Common {
  readonly kind: SocketKind;
  readonly place: SocketNamespace;
  /** Of all sockets of this kind. */
  readonly made: Map<string, MadeOptions>;
}

/** One socket's record. */
class Told implements ToldSocket {
  readonly kind: SocketKind;
  readonly place: SocketNamespace;
  readonly made: MadeOptions;
  readonly #asked: Asked;
  readonly #before: SurveyAnswers;
  readonly #at: number;

  constructor(
    asked: Asked,
    { before, at }: { readonly before: SurveyAnswers; readonly at: number },
    { kind, place, made }: Common,
  ) {
    this.kind = kind;
    this.place = place;
    this.#asked = asked;
    this.#before = before;
    this.#at = at;
    const text = asked.text(before, at);
    let options = made.get(text);
    if (options === undefined) made.set(text, (options = {}));
    this.made = options;
  }

  get events(): number {
    return this.#asked.events(this.#before, this.#at);
  }

  get address(): Buffer {
    return this.#asked.address(this.#before, this.#at);
  }

  readonly number = (level: number, name: number): number | undefined =>
    this.#asked.number(this.#before, this.#at, { level, name });

  find(option: SocketOptionPlace): Buffer | number | undefined {
    return this.#asked.find(this.#before, this.#at, option);
  }
}

function askOption(
  questions: SurveyQuestions,
  { level, name, size }: SocketOptionPlace,
): Omit<AskedOption, "size"> {
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
