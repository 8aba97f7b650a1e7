"""Text over HTTP.

routes         `/v1/completions`, `/v1/chat/completions`, `/v1/models`
requests       OpenAI's requests: what is honoured, neutral, or refused by name
answers        OpenAI's answers as structs; `replies`: made of what was generated
stream         answers sent token by token
compare        `/api/compare`: one prompt with and without an intervention
activations    `/api/activations`: what SAEs read in a given text
"""
