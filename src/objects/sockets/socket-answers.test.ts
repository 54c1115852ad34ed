import { afterEach, expect, it } from "vitest";
import * as so from "../../sys/abi/socket.ts";
import { addressOf, syscall, trySyscall } from "../../sys/ffi.ts";
import { getNumber, setNumber, withKnownOptions, type AskedOption } from "../../sys/socket.ts";
import { openFileOf } from "../files/live-file.fixture.ts";
import { OptionQuestion } from "./option-question.ts";
import { askedOnce, COLLECTED } from "./socket-answers.ts";
import { collectOptions } from "./socket-options.ts";

const opened: number[] = [];

afterEach(() => {
  for (const fd of opened.splice(0)) trySyscall("close", fd);
});

function socket(family: number = so.AF_UNIX): number {
  const fd = syscall("socket", family, so.SOCK_STREAM | so.SOCK_CLOEXEC, 0);
  opened.push(fd);
  return fd;
}

function collect(fd: number, family = so.AF_UNIX): ReturnType<typeof collectOptions> {
  return askedOnce(fd, family, () => collectOptions(openFileOf(process.pid, fd), fd, { family }));
}

it("knows all options that are collected beforehand", () => {
  const fd = socket();
  const asked: AskedOption[] = [];
  const source = { find: (option: AskedOption) => void asked.push(option) };
  withKnownOptions(fd, source, () =>
    collectOptions(openFileOf(process.pid, fd), fd, { family: so.AF_UNIX }),
  );
  expect(asked.length).toBeGreaterThan(10);
  for (const option of asked) expect(COLLECTED).toContainEqual(option);
});

it("tells sockets that differ from the one before", () => {
  const [plain, other, third] = [socket(), socket(), socket()];
  setNumber(other, { level: so.SOL_SOCKET, name: so.SO_PRIORITY, value: 5 });
  expect(collect(plain)).toBe(collect(third));
  expect(collect(other)).toMatchObject({ so_priority: 5 });
  expect(collect(third)).toMatchObject({ so_priority: 0 });
});

it("reads the filter of every socket that has one", () => {
  const withFilter = (verdict: number): number => {
    const fd = socket(so.AF_INET);
    // One instruction: return `verdict`.
    const code = Buffer.alloc(8);
    code.writeUInt16LE(6, 0);
    code.writeUInt32LE(verdict, 4);
    // struct sock_fprog, of which the first word is the count.
    const header = Buffer.alloc(16);
    header.writeUInt16LE(1, 0);
    header.writeBigUInt64LE(BigInt(addressOf(code)), 8);
    syscall("setsockopt", fd, so.SOL_SOCKET, so.SO_ATTACH_FILTER, header, header.length);
    return fd;
  };
  const filters = [1000, 2000].map((verdict) => collect(withFilter(verdict), so.AF_INET).so_filter);
  expect(filters).toEqual([[(6n << 48n) | 1000n], [(6n << 48n) | 2000n]]);
});

it("finds the options that differ, and no others, whatever socket was asked before", () => {
  const place = { level: so.SOL_SOCKET, size: 4 };
  const question = new OptionQuestion([
    { ...place, name: so.SO_RCVLOWAT },
    { ...place, name: so.SO_BINDTODEVICE, size: so.IFNAMSIZ },
    { ...place, name: so.SO_PRIORITY },
  ]);
  const usual = question.answers(socket(so.AF_INET));
  const [plain, other] = [socket(so.AF_INET), socket(so.AF_INET)];
  setNumber(other, { ...place, name: so.SO_PRIORITY, value: 3 });
  const device = Buffer.from("lo\0");
  syscall("setsockopt", other, so.SOL_SOCKET, so.SO_BINDTODEVICE, device, device.length);
  for (let round = 0; round < 2; round += 1) {
    expect(question.differences(plain, usual)).toEqual([]);
    expect(question.differences(other, usual).map(({ name }) => name)).toEqual([
      so.SO_BINDTODEVICE,
      so.SO_PRIORITY,
    ]);
  }
});

it("believes what is known of one socket alone, and only for the step", () => {
  const [known, other] = [socket(), socket()];
  const source = { find: () => Buffer.from([77, 0, 0, 0]) };
  const read = (fd: number): number => getNumber(fd, so.SOL_SOCKET, so.SO_RCVLOWAT);
  expect(withKnownOptions(known, source, () => [read(known), read(other)])).toEqual([77, 1]);
  expect(read(known)).toBe(1);
});
