// What sockets are asked when they are written ahead (sockets-ahead.ts), in one survey for many, and one socket's part of the answers.

import { F_GETFL, F_GETOWN_EX, F_GETSIG } from "../../sys/abi/fcntl.ts";
import * as inet from "../../sys/abi/inet.ts";
import { POLLERR, POLLIN, POLLPRI, POLLRDHUP } from "../../sys/abi/poll.ts";
import * as so from "../../sys/abi/socket.ts";
import { ENOPROTOOPT, EOPNOTSUPP } from "../../sys/errno.ts";
import { getOption } from "../../sys/socket.ts";
import type { Argument, Pointer, Ref } from "../../tracee/program.ts";
import type {
  SurveyAnswers,
  SurveyPlace,
  SurveyQuestions,
  SurveyRange,
} from "../../tracee/survey.ts";
import type { SocketKind } from "./further-options.ts";
import type { SocketOptionPlace } from "./option-question.ts";
import type { MadeOptions, OptionArgument, RoomOptions, ToldSocket } from "./room-ahead.ts";
import type { SocketNamespace } from "./socket-namespace.ts";

/** The options that a room asks for without those that sockets of this kind do not have, as one of them tells. */
export class ExistingOptions {
  readonly own: readonly SocketOptionPlace[];
  readonly shared: readonly SocketOptionPlace[];
  /** Of those that are not there the negative error number, and the values of those that sockets of this kind have for good. */
  readonly known = new Map<number, number | Buffer>();

  constructor(fd: number, { own, shared }: RoomOptions) {
    const isThere = (option: SocketOptionPlace): boolean => {
      const told = getOption(fd, option);
      if (isConstant(option)) {
        this.known.set(keyOf(option), told);
        return false;
      }
      if (told !== -ENOPROTOOPT && told !== -EOPNOTSUPP) return true;
      this.known.set(keyOf(option), told);
      return false;
    };
    this.shared = uniquePlaces(shared).filter(isThere);
    const known = new Set(shared.map(keyOf));
    this.own = uniquePlaces(own).filter((option) => !known.has(keyOf(option)) && isThere(option));
  }
}

/** What makes a kind, and the number of the network namespace. */
function isConstant({ level, name }: SocketOptionPlace): boolean {
  return (
    level === so.SOL_SOCKET &&
    (name === so.SO_TYPE || name === so.SO_PROTOCOL || name === so.SO_NETNS_COOKIE)
  );
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
export class Asked {
  #signal: Ref | undefined;
  #owner: Pointer | undefined;
  #events: Pointer | undefined;
  #address: Pointer | undefined;
  #range: SurveyRange | undefined;
  /** Addresses, and options that sockets do not share. */
  readonly #single: SurveyRange[] = [];
  readonly #options = new Map<number, AskedOption>();
  #known: ReadonlyMap<number, number | Buffer> = new Map();
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
      const first = questions.call("getsockname", [fd, own, word(questions, ADDRESS_SIZE)]);
      const last = questions.call("getpeername", [fd, peer, word(questions, ADDRESS_SIZE)]);
      this.#address = own;
      this.#single.push({ first, last, start: own.offset, end: peer.offset + ADDRESS_SIZE });
      questions.call("ioctl", [fd, inet.SIOCOUTQ, questions.output(WORD)]);
    }
    this.#known = options.known;
    const shared = options.shared.map((option) => this.#askOption(questions, option));
    this.#range = rangeOf(shared);
    const single = rangeOf(options.own.map((option) => this.#askOption(questions, option)));
    if (single !== undefined) this.#single.push(single);
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

  /** Whether two sockets have told the same of what sockets do not share. */
  isAlike(told: SurveyAnswers, index: number, other: SurveyPlace): boolean {
    return this.#single.every((range) => told.isAlike(index, other, range));
  }

  /** What was made of the options of a socket that has told the same of those that sockets share. */
  madeLike(told: SurveyAnswers, index: number, before: KnownOptions[]): MadeOptions {
    const range = this.#range;
    if (range === undefined) return {};
    for (const known of before) if (told.isAlike(index, known, range)) return known.made;
    const made = {};
    if (before.length < MOST_KNOWN) before.push({ answers: told, index, made });
    return made;
  }

  /** As an OptionSource. */
  find(told: SurveyAnswers, index: number, option: SocketOptionPlace): Buffer | number | undefined {
    const key = keyOf(option);
    const asked = this.#options.get(key);
    if (asked === undefined) return this.#known.get(key);
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

/** Options that a socket has told, and what was made of them. */
export interface KnownOptions extends SurveyPlace {
  readonly made: MadeOptions;
}

/** More are not looked through. */
const MOST_KNOWN = 32;

/** What options that were asked one after the other take in a record. */
function rangeOf(asked: readonly AskedOption[]): SurveyRange | undefined {
  const [first, last] = [asked[0], asked.at(-1)];
  if (first === undefined || last === undefined) return undefined;
  const end = last.length.offset + WORD;
  return { first: first.call, last: last.call, start: first.value.offset, end };
}

interface Common {
  readonly kind: SocketKind;
  readonly place: SocketNamespace;
  /** Of all sockets of this kind. */
  readonly known: KnownOptions[];
}

/** One socket's record. */
export class Told implements ToldSocket {
  readonly kind: SocketKind;
  readonly place: SocketNamespace;
  readonly made: MadeOptions;
  readonly #asked: Asked;
  readonly #before: SurveyAnswers;
  readonly #at: number;

  constructor(
    asked: Asked,
    { before, at }: { readonly before: SurveyAnswers; readonly at: number },
    { kind, place, known }: Common,
  ) {
    this.kind = kind;
    this.place = place;
    this.#asked = asked;
    this.#before = before;
    this.#at = at;
    this.made = asked.madeLike(before, at, known);
  }

  get events(): number {
    return this.#asked.events(this.#before, this.#at);
  }

  get address(): Buffer {
    return this.#asked.address(this.#before, this.#at);
  }

  readonly isAlike = (other: ToldSocket): boolean =>
    other instanceof Told &&
    this.#asked.isAlike(this.#before, this.#at, { answers: other.#before, index: other.#at });

  readonly number = (level: number, name: number): number | undefined =>
    this.#asked.number(this.#before, this.#at, { level, name });

  find(option: SocketOptionPlace): Buffer | number | undefined {
    return this.#asked.find(this.#before, this.#at, option);
  }
}

/** Adds one getsockopt. */
export function askOption(
  questions: SurveyQuestions,
  { level, name, size }: SocketOptionPlace,
  fd: Argument = questions.fd,
): Omit<AskedOption, "size"> {
  const [value, length] = [questions.output(size), word(questions, size)];
  return {
    call: questions.call("getsockopt", [fd, level, name, value, length]),
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
