// Many options of a socket, asked in one call of the interpreter: a dump asks for some fifty of each of perhaps thousands, which are
// alike in nearly all of them, so that what is told of one is first compared as a whole. See getsockopt(2).

import type { RepriseSocketOption } from "../../images/schema/messages.generated.ts";
import type { AskedOption, OptionSource } from "../../sys/socket.ts";
import { ResidentProgram } from "../../tracee/local.ts";
import { Program, type Pointer, type Ref } from "../../tracee/program.ts";

/** An option and the most bytes that it has. */
export interface SocketOptionPlace {
  readonly level: number;
  readonly name: number;
  readonly size: number;
}

/** What one socket answered. */
export interface OptionAnswers {
  /** Undefined for an option that the socket does not have. */
  readonly values: readonly (Buffer | undefined)[];
  /** All that the kernel wrote. */
  readonly raw: Buffer;
}

interface Asked {
  readonly place: SocketOptionPlace;
  readonly call: Ref;
  readonly value: Pointer;
  /** Where the kernel is told the room for the value and tells its length. */
  readonly length: Pointer;
}

/** The same options of any socket; it answers for the one that was asked last. */
export class OptionQuestion implements OptionSource {
  readonly #program: ResidentProgram;
  readonly #asked: readonly Asked[];
  readonly #calls: readonly Ref[];
  readonly #byName = new Map<number, Asked>();
  readonly #lengths: Pointer;
  /** Where they are, and what stands there at first. */
  readonly #room: Buffer;
  readonly #rooms: Buffer;
  /** Of the first so many options. */
  readonly #windows = new Map<number, readonly Buffer[]>();

  constructor(places: readonly SocketOptionPlace[]) {
    const program = new Program();
    this.#rooms = Buffer.alloc(places.length * WORD);
    places.forEach(({ size }, index) => this.#rooms.writeUInt32LE(size, index * WORD));
    this.#lengths = program.data(this.#rooms);
    this.#asked = places.map((place, index) => {
      const length = { ...this.#lengths, offset: this.#lengths.offset + index * WORD };
      const value = program.output(place.size, 8);
      const args = [0, place.level, place.name, value, length];
      return { place, length, value, call: program.call("getsockopt", args, { mayFail: true }) };
    });
    this.#calls = this.#asked.map(({ call }) => call);
    for (const asked of this.#asked) this.#byName.set(keyOf(asked.place), asked);
    this.#program = new ResidentProgram(program);
    this.#room = this.#program.bytes(this.#lengths, this.#rooms.length);
  }

  /** Asks a socket. */
  ask(fd: number): void {
    this.#program.setArgument(this.#calls, 0, fd);
    this.#room.set(this.#rooms);
    this.#program.runAgain();
  }

  answers(fd: number): OptionAnswers {
    this.ask(fd);
    const values = this.#asked.map((asked) => {
      const value = this.#answer(asked);
      return typeof value === "number" ? undefined : Buffer.from(value);
    });
    return { values, raw: this.raw(this.#asked.length) };
  }

  /** Options of a socket whose value is another one. */
  differences(fd: number, { values, raw }: OptionAnswers): RepriseSocketOption[] {
    this.ask(fd);
    if (this.hasAnswered(raw, this.#asked.length)) return [];
    return this.#asked.flatMap((asked, index) => {
      const fresh = values[index];
      const value = fresh === undefined ? undefined : this.#answer(asked);
      if (value === undefined || typeof value === "number" || fresh === undefined) return [];
      if (value.equals(fresh)) return [];
      const { level, name } = asked.place;
      return [{ level, name, value: Uint8Array.from(value) }];
    });
  }

  /** As `differences`, of a socket that somebody else has asked; what it was not asked for it has not. */
  differencesOf(source: OptionSource, { values }: OptionAnswers): RepriseSocketOption[] {
    return this.#asked.flatMap(({ place }, index) => {
      const fresh = values[index];
      const value = fresh === undefined ? undefined : source.find(place);
      if (value === undefined || typeof value === "number" || fresh === undefined) return [];
      return value.equals(fresh)
        ? []
        : [{ level: place.level, name: place.name, value: Uint8Array.from(value) }];
    });
  }

  /**
   * All that the last socket answered to the first `count` options, to be compared with what another one does. An earlier socket may have
   * left something in the room of a value that is shorter: equal answers may differ here, but not the other way round.
   */
  raw(count: number): Buffer {
    return Buffer.concat(this.#parts(count));
  }

  /** Whether the last socket has answered what another one did, whose `raw` this is. */
  hasAnswered(raw: Buffer, count: number): boolean {
    let at = 0;
    let parts = this.#windows.get(count);
    if (parts === undefined) this.#windows.set(count, (parts = this.#parts(count)));
    for (const part of parts) {
      if (raw.compare(part, 0, part.length, at, at + part.length) !== 0) return false;
      at += part.length;
    }
    return at === raw.length;
  }

  find(option: AskedOption): Buffer | number | undefined {
    const asked = this.#byName.get(keyOf(option));
    return asked?.place.size === option.size ? this.#answer(asked) : undefined;
  }

  /** The value, a window until the next question, or the negative error number. */
  #answer({ call, value, length, place }: Asked): Buffer | number {
    if (this.#program.failed(call)) return this.#program.value(call);
    const told = this.#program.bytes(length, WORD).readUInt32LE(0);
    return this.#program.bytes(value, Math.min(told, place.size));
  }

  /** Lengths, results and values of the first options. */
  #parts(count: number): Buffer[] {
    const last = this.#asked[count - 1];
    const [first] = this.#asked;
    if (last === undefined || first === undefined) return [];
    return [
      this.#program.bytes(this.#lengths, count * WORD),
      this.#program.results(count),
      this.#program.bytes(first.value, last.value.offset + last.place.size - first.value.offset),
    ];
  }
}

const WORD = 4;

/** Levels and names are small numbers. */
function keyOf({ level, name }: AskedOption): number {
  return level * 0x1_0000 + name;
}
