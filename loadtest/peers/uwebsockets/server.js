'use strict';

// Echo and channels with uWebSockets.js, for comparisons. The project publishes on GitHub only; the
// package is its source at version 20.30, built and put on npm by Truffle.
//
//   node server.js PORT_FILE [PING_SECONDS]

const fs = require('node:fs');
const uWS = require('@trufflesuite/uws-js-unofficial');

const [portFile, pingSeconds] = process.argv.slice(2);

// Where its binary does not load, the package falls back on one in JavaScript: another server under
// the same name.
if (!Object.keys(require.cache).some((path) => path.endsWith('.node'))) {
  console.error(`uWebSockets.js has no binary for this Node.js (${process.version})`);
  process.exit(1);
}

// What is alike for echo and channels. The defaults would refuse more than 16 KiB and disconnect who is
// silent for two minutes.
const behavior = {
  compression: uWS.DISABLED,
  maxPayloadLength: 16 * 1024 * 1024,
  // What may wait for one client, as with the gateway; then it is disconnected. The default is 64 KiB
  // and to leave messages out.
  maxBackpressure: 1024 * 1024,
  closeOnBackpressureLimit: true,
  idleTimeout: pingSeconds === undefined ? 0 : idleTimeoutForPings(Number(pingSeconds)),
  sendPingsAutomatically: pingSeconds !== undefined,
};

// uWebSockets pings when a margin of the idle timeout is left; it keeps the timeout in units of four
// seconds. This is the timeout that pings next to every so many seconds.
function idleTimeoutForPings(seconds) {
  let best = 8;
  for (let timeout = 8; timeout <= 960; timeout += 4) {
    const distance = Math.abs(pingsEvery(timeout) - seconds);
    if (distance < Math.abs(pingsEvery(best) - seconds)) best = timeout;
  }
  return best;
}

// As in WebSocketContextData::calculateIdleTimeoutCompnents of uWebSockets.
function pingsEvery(idleTimeout) {
  let margin = 4;
  while (idleTimeout - margin * 2 >= margin * 2 && margin < 16) margin *= 2;
  return idleTimeout - margin;
}

const app = uWS.App();

app.ws('/echo', {
  ...behavior,
  message: (socket, message, isBinary) => {
    socket.send(message, isBinary, false);
  },
});

app.ws('/channels/:channel', {
  ...behavior,
  upgrade: (response, request, context) => {
    response.upgrade(
      { channel: request.getParameter(0) },
      request.getHeader('sec-websocket-key'),
      request.getHeader('sec-websocket-protocol'),
      request.getHeader('sec-websocket-extensions'),
      context,
    );
  },
  open: (socket) => {
    socket.subscribe(socket.getUserData().channel);
  },
  // The app publishes to all; a socket would leave itself out.
  message: (socket, message, isBinary) => {
    app.publish(socket.getUserData().channel, message, isBinary, false);
  },
});

app.listen('127.0.0.1', 0, uWS.LIBUS_LISTEN_EXCLUSIVE_PORT, (token) => {
  if (!token) {
    console.error('uWebSockets.js cannot listen');
    process.exit(1);
  }
  // Whole or not at all: the reader waits for the file.
  fs.writeFileSync(`${portFile}.partial`, `listen=127.0.0.1:${uWS.us_socket_local_port(token)}\n`);
  fs.renameSync(`${portFile}.partial`, portFile);
});
