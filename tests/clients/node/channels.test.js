'use strict';

const assert = require('node:assert/strict');
const { after, before, describe, it } = require('node:test');
const { DEADLINE_MS, startGateway, until } = require('./gateway');

describe('a channel', { timeout: 4 * DEADLINE_MS }, () => {
  let gateway;
  before(async () => {
    gateway = await startGateway();
  });
  after(() => gateway.stop());

  it('delivers what anyone sends to everyone, the sender included', async () => {
    const clients = await Promise.all(Array.from({ length: 6 }, () => gateway.connect('/channels/all')));
    for (const message of ['hello 🦀', Buffer.from([0, 255]), '', Buffer.alloc(0)]) {
      clients[0].send(message);
      for (const client of clients) assert.deepEqual(await client.read(), message);
    }
    for (const client of clients) await client.close();
  });

  it('leaves out the sender that asks for it', async () => {
    const quiet = await gateway.connect('/channels/own?own=false');
    const other = await gateway.connect('/channels/own');
    quiet.send('from quiet');
    assert.equal(await other.read(), 'from quiet');
    other.send('from other');
    assert.equal(await quiet.read(), 'from other');
    await quiet.close();
    await other.close();
  });

  it('has one order for all, and keeps that of each publisher', async () => {
    const [publishers, each] = [4, 250];
    const connect = (count, target) =>
      Promise.all(Array.from({ length: count }, () => gateway.connect(target)));
    const listeners = await connect(8, '/channels/order');
    const senders = await connect(publishers, '/channels/order?own=false');
    const heard = listeners.map(async (listener) => {
      const messages = [];
      while (messages.length < publishers * each) messages.push(await listener.read());
      return messages;
    });
    for (let number = 0; number < each; number++) {
      senders.forEach((sender, place) => sender.send(`${place} ${number}`));
    }
    const [first, ...others] = await Promise.all(heard);
    for (let place = 0; place < publishers; place++) {
      const own = first.filter((message) => message.startsWith(`${place} `));
      assert.deepEqual(own, Array.from({ length: each }, (_, number) => `${place} ${number}`));
    }
    for (const other of others) assert.deepEqual(other, first);
    for (const client of [...listeners, ...senders]) await client.close();
  });

  it('delivers what the backend publishes', async () => {
    const client = await gateway.connect('/channels/backend');
    const publish = (fields) => gateway.api('publish', { channel: 'backend', ...fields });
    assert.deepEqual(await publish({ data: 'text' }), { result: {} });
    assert.equal(await client.read(), 'text');
    assert.deepEqual(await publish({ data: { b: [1, null], a: 'x' } }), { result: {} });
    assert.equal(await client.read(), '{"b":[1,null],"a":"x"}');
    assert.deepEqual(await publish({ b64data: 'AP8=' }), { result: {} });
    assert.deepEqual(await client.read(), Buffer.from([0, 255]));
    await client.close();
  });

  it('is listed with its subscribers until the last one is gone', async () => {
    const list = async () => (await gateway.api('channels', { pattern: 'listed*' })).result.channels;
    const clients = [
      await gateway.connect('/channels/listed'),
      await gateway.connect('/channels/listed'),
    ];
    assert.deepEqual(await list(), { listed: { num_clients: 2 } });
    for (const client of clients) await client.close();
    await until(async () => Object.keys(await list()).length === 0, 'the channel is gone');
  });
});
