// Terminals: include/uapi/asm-generic/{ioctls,termbits,termios}.h, include/uapi/linux/{major,tty}.h.

export const TCGETS = 0x5401;
export const TCSETS = 0x5402;
export const TIOCEXCL = 0x540c;
export const TIOCSCTTY = 0x540e;
export const TIOCNOTTY = 0x5422;
export const TIOCSPGRP = 0x5410;
export const TIOCGWINSZ = 0x5413;
export const TIOCSWINSZ = 0x5414;
export const TIOCPKT = 0x5420;
export const TIOCGSID = 0x5429;
export const TIOCGPGRP = 0x540f;
export const TIOCGLCKTRMIOS = 0x5456;
export const TIOCSLCKTRMIOS = 0x5457;
export const TIOCGPTN = 0x80045430;
export const TIOCSPTLCK = 0x40045431;
export const TIOCGPKT = 0x80045438;
export const TIOCGPTLCK = 0x80045439;
export const TIOCGEXCL = 0x80045440;
/** The device behind /dev/tty or /dev/console. */
export const TIOCGDEV = 0x80045432;
/** Opens the other end of a master, without a path (Linux 4.13). */
export const TIOCGPTPEER = 0x5441;

/** struct termios as TCGETS gives it: four words of flags, c_line, 19 characters. */
export const TERMIOS_SIZE = 36;
export const NCCS = 19;
/** struct winsize: rows, columns, width, height. */
export const WINSIZE_SIZE = 8;

export const ICANON = 0o2;
export const VMIN = 6;

/** Consoles and serial lines. */
export const TTY_MAJOR = 4;
/** /dev/tty, /dev/console, /dev/ptmx. */
export const TTYAUX_MAJOR = 5;
export const UNIX98_PTY_MASTER_MAJOR = 128;
export const UNIX98_PTY_SLAVE_MAJOR = 136;
export const UNIX98_PTY_MAJOR_COUNT = 8;
/** Serial lines over USB, and those of many embedded systems. */
export const USB_SERIAL_MAJOR = 188;
export const LOW_DENSE_SERIAL_MAJOR = 204;
/** Minors of TTY_MAJOR up to this one are virtual consoles. */
export const MAX_NR_CONSOLES = 63;
/** tcflow(3): stop and go on. */
export const TCXONC = 0x540a;
export const TCOOFF = 0;
export const TCOON = 1;
/** c_iflag: ^S and ^Q stop output and let it go on. */
export const IXON = 0o2000;
/** c_lflag: whoever is at the master does the line editing. */
export const EXTPROC = 0o200000;
export const VSTOP = 9;
